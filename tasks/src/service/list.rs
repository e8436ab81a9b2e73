use http::{HeaderValue, StatusCode, header::LINK};
use serde::Serialize;

use super::{
    access::Access,
    config::Config,
    problem::{self, Problem},
    query,
    respond::{self, Answer},
};
use crate::{
    Status, TaskId, TaskState,
    store::{Filter, Page},
};

/// Which part of which list is wanted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    filter: Filter,
    page: Page,
}

impl Wanted {
    /// What is not known is left out; what is known has to be right.
    pub(super) fn read(query: &str) -> Result<Self, Problem> {
        let wrong = |what: &'static str| Problem::new(StatusCode::BAD_REQUEST, what);
        let pairs = query::parse(query).ok_or_else(|| wrong("the query is not encoded as a form is"))?;
        let (mut filter, mut limit, mut after) = (Filter::default(), None, None);
        for (name, value) in pairs {
            let is_again = match name.as_str() {
                "state" => {
                    for text in value.split(',').filter(|text| !text.is_empty()) {
                        let state = text.parse::<TaskState>().ok();
                        let state = state.ok_or_else(|| wrong("`state` is none of the states of a task"))?;
                        if !filter.states.contains(&state) {
                            filter = filter.state(state);
                        }
                    }
                    false
                }
                "name" => !value.is_empty() && filter.name.replace(value).is_some(),
                "limit" => {
                    limit.replace(number(&value).ok_or_else(|| wrong("`limit` is not a number from 1 on"))?).is_some()
                }
                "after" => {
                    let id: TaskId = value.parse().map_err(|_| wrong("`after` is not the id of a task"))?;
                    after.replace(id).is_some()
                }
                _ => false,
            };
            if is_again {
                return Err(wrong("`name`, `limit` and `after` may be there once"));
            }
        }
        let page = limit.map_or_else(Page::default, Page::first);
        Ok(Self { filter, page: after.map_or(page, |id| page.after(id)) })
    }

    /// A reference to the page behind that id, relative to this one.
    fn link(&self, next: TaskId) -> String {
        let states: Vec<_> = self.filter.states.iter().map(|state| state.as_str()).collect();
        let states = if states.is_empty() { String::new() } else { format!("state={}&", states.join(",")) };
        let name = self.filter.name.as_ref().map_or_else(String::new, |name| format!("name={}&", query::encode(name)));
        format!("<?{states}{name}limit={}&after={next}>; rel=\"next\"", self.page.limit)
    }
}

/// One too large for any list is as good as the largest.
fn number(text: &str) -> Option<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(usize::MAX)).filter(|number| *number > 0)
}

/// A part of the list of tasks.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub(super) struct StatusList {
    /// The newest first.
    tasks: Vec<Status>,
    /// What to ask for with `after`, if there may be more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<TaskId>,
}

pub(super) async fn list(config: Config, access: Access, mut wanted: Wanted) -> Answer {
    if let Access::Owner(name) = &access {
        wanted.filter = wanted.filter.owner(name);
    }
    let listing = match config.source.list(&wanted.filter, wanted.page).await {
        Ok(listing) => listing,
        Err(error) => return problem::of_store(&error).into_response(),
    };
    let visible = listing.records.iter().filter(|record| access.sees(record.owner.as_deref()));
    let mut answer = respond::json(&StatusList { tasks: visible.map(Status::from).collect(), next: listing.next });
    let link = listing.next.and_then(|next| HeaderValue::try_from(wanted.link(next)).ok());
    answer.headers_mut().extend(link.map(|link| (LINK, link)));
    respond::vary_by_accept(&mut answer);
    answer
}
