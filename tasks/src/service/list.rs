use std::borrow::Cow;

use http::{
    HeaderValue, StatusCode,
    header::{ACCEPT, LINK},
};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    access::Access,
    config::Config,
    response::{self, Response, store_problem, vary_by},
};
use crate::{
    Status, TaskId, TaskState,
    problem::Problem,
    store::{Filter, Listing, Page},
};

/// Query of a list request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ListQuery {
    filter: Filter,
    page: Page,
}

impl ListQuery {
    /// Parses the query of a list request. Ignores unknown parameters and rejects invalid values of
    /// known ones.
    pub(super) fn parse(query: &str) -> Result<Self, Problem> {
        let (mut filter, mut limit, mut after) = (Filter::default(), None, None);
        for (name, value) in parse_query(query)? {
            let is_repeated = match &*name {
                "limit" => {
                    let value = parse_limit(&value).ok_or_else(|| bad_request("`limit` must be a positive number"))?;
                    limit.replace(value).is_some()
                }
                "after" => {
                    let id: TaskId = value.parse().map_err(|_| bad_request("`after` must be the id of a task"))?;
                    after.replace(id).is_some()
                }
                _ => set_filter(&mut filter, &name, &value)?,
            };
            if is_repeated {
                return Err(bad_request("every parameter except `state` must not be repeated"));
            }
        }
        let page = limit.map_or_else(Page::default, Page::first);
        Ok(Self { filter, page: after.map_or(page, |id| page.after(id)) })
    }

    /// Returns a `Link` to the page after `id`, relative to this one.
    fn next_link(&self, id: TaskId) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if !self.filter.states.is_empty() {
            let states: Vec<_> = self.filter.states.iter().map(|state| state.as_str()).collect();
            query.append_pair("state", &states.join(","));
        }
        let Filter { name, queue, owner, text, .. } = &self.filter;
        for (name, value) in [("name", name), ("queue", queue), ("owner", owner), ("text", text)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if let Some(river_id) = self.filter.river_id {
            query.append_pair("river_id", &river_id.to_string());
        }
        query.append_pair("limit", &self.page.limit.to_string()).append_pair("after", &id.to_string());
        format!("<?{}>; rel=\"next\"", query.finish())
    }
}

/// Maximum length of a text that is searched.
const MAX_TEXT_BYTES: usize = 200;

/// Sets a condition of a filter. An empty value selects all tasks, and so does an unknown name.
/// Returns `true` if the condition was set before.
pub(super) fn set_filter(filter: &mut Filter, name: &str, value: &str) -> Result<bool, Problem> {
    let field = match name {
        _ if value.is_empty() => return Ok(false),
        "state" if value.split(',').all(str::is_empty) => {
            return Err(bad_request("`state` has no state, only commas"));
        }
        "state" => {
            for state in value.split(',').filter(|state| !state.is_empty()) {
                let state: TaskState =
                    state.parse().map_err(|error| bad_request(format!("`state` is not valid: {error}")))?;
                if !filter.states.contains(&state) {
                    filter.states.push(state);
                }
            }
            return Ok(false);
        }
        "river_id" => {
            let river_id = value.parse().map_err(|_| bad_request("`river_id` must be the number of a job"))?;
            return Ok(filter.river_id.replace(river_id).is_some());
        }
        "text" if value.len() > MAX_TEXT_BYTES => {
            return Err(bad_request(format!(
                "`text` has {} bytes, at most {MAX_TEXT_BYTES} are searched",
                value.len()
            )));
        }
        "name" => &mut filter.name,
        "queue" => &mut filter.queue,
        "owner" => &mut filter.owner,
        "text" => &mut filter.text,
        _ => return Ok(false),
    };
    Ok(field.replace(value.to_owned()).is_some())
}

/// Restricts a filter to the tasks that `access` permits. Returns `None` if there are none.
pub(super) fn restricted(filter: Filter, access: &Access) -> Option<Filter> {
    match access {
        Access::All => Some(filter),
        Access::Owner(name) => {
            let is_other = filter.owner.as_ref().is_some_and(|owner| owner != name);
            (!is_other).then(|| filter.owner(name))
        }
        Access::Public | Access::Denied => filter.owner.is_none().then(|| filter.unowned()),
    }
}

pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, message)
}

/// Name and value of a query parameter.
type Pair<'q> = (Cow<'q, str>, Cow<'q, str>);

/// Parses a query in the form encoding.
///
/// `form_urlencoded::parse` replaces bytes that it cannot decode. A service that filters by the
/// result must reject such a query instead.
pub(super) fn parse_query(query: &str) -> Result<Vec<Pair<'_>>, Problem> {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    let is_valid = query.split('%').skip(1).all(is_escape) && percent_decode_str(query).decode_utf8().is_ok();
    if !is_valid {
        return Err(bad_request("the query is not form-encoded"));
    }
    Ok(form_urlencoded::parse(query.as_bytes()).collect())
}

/// Parses a positive number. Saturates on overflow, since [`Page`] limits it anyway.
fn parse_limit(text: &str) -> Option<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(usize::MAX)).filter(|limit| *limit > 0)
}

/// A page of the list of tasks.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "A page of the list of tasks."))]
pub(super) struct StatusList {
    /// The tasks, newest first, without `result` and `error.detail`.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Status>))]
    tasks: Vec<Box<RawValue>>,
    /// The value of `after` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<TaskId>,
}

/// A page ends early once its statuses have this many bytes, so that a response fits into memory
/// for every client that reads slowly. A typical status has 400 bytes.
const MAX_BYTES: usize = 1024 * 1024;

impl StatusList {
    /// Returns as many statuses as fit, but at least one.
    fn new(listing: &Listing) -> Result<Self, serde_json::Error> {
        let (mut tasks, mut bytes, mut next) = (Vec::new(), 0, listing.next);
        let mut last = None;
        for record in &listing.records {
            let status = to_raw_value(&Status::from(record))?;
            bytes += status.get().len();
            if bytes > MAX_BYTES && last.is_some() {
                next = last;
                break;
            }
            tasks.push(status);
            last = Some(record.id);
        }
        Ok(Self { tasks, next })
    }
}

/// Returns a page of the list.
pub(super) async fn list(config: Config, access: Access, query: ListQuery) -> Response {
    try_list(config, access, query).await.unwrap_or_else(Problem::into_response)
}

async fn try_list(config: Config, access: Access, query: ListQuery) -> Result<Response, Problem> {
    let _permit = config.acquire_list()?;
    let listing = match restricted(query.filter.clone(), &access) {
        Some(filter) => config.source.list(&filter, query.page).await.map_err(|error| store_problem(&error))?,
        None => Listing::default(),
    };
    let list = StatusList::new(&listing);
    let list = list.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the list cannot be serialized"))?;
    let mut response = response::json(&list);
    let link = list.next.and_then(|next| HeaderValue::try_from(query.next_link(next)).ok());
    response.headers_mut().extend(link.map(|link| (LINK, link)));
    vary_by(&mut response, ACCEPT);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse_query;

    #[test]
    fn malformed_queries_are_rejected() {
        for query in ["a=%", "a=%4", "a=%zz", "%ff=1", "a=%C3", "a=%C3&b=%A9", "a=%+1"] {
            assert!(parse_query(query).is_err(), "{query:?}");
        }
        let pairs = parse_query("&a=b+c%21&d&&").unwrap_or_default();
        assert_eq!(pairs, [("a".into(), "b c!".into()), ("d".into(), "".into())]);
    }

    proptest! {
        #[test]
        fn encoded_values_are_decoded(text in "\\PC{0,30}", other in "[%0-9a-f+&=x]{0,20}") {
            let query = form_urlencoded::Serializer::new(String::new()).append_pair("a", &text).finish();
            prop_assert_eq!(parse_query(&query).ok(), Some(vec![("a".into(), text.as_str().into())]));
            let _ = parse_query(&other);
        }
    }
}
