//! Operations of operators: changes of jobs, many at once, queues and kinds, and the summary.

use std::{future::poll_fn, pin::Pin, pin::pin, time::Duration};

use bytes::Buf;
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use http_body::Body;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower_offload::offload::RequestHead;

use super::{
    access::{Access, Action},
    config::Config,
    list::{bad_request, restricted, set_filter},
    response::{self, Response, ResponseFuture, store_problem, unknown_task, visible},
    routes::Operation,
};
use crate::{
    BulkAction, BulkReport, OperationError, TaskId, TaskState, Timestamp,
    operation::{BlockedSequence, Change, Pausable, QueueState},
    problem::Problem,
    store::{Filter, Page},
};

/// A request that is authorized.
pub(super) enum Dispatched {
    Response(ResponseFuture),
    /// The response depends on the body.
    NeedsBody(Respond),
}

type Respond = Box<dyn FnOnce(Vec<u8>) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send>;

impl Dispatched {
    /// Reads the body, if the operation needs it. Otherwise the body is dropped unread.
    pub(super) fn with_body<B>(self, body: B) -> ResponseFuture
    where
        B: Body + Send + 'static,
    {
        match self {
            Self::Response(response) => response,
            Self::NeedsBody(respond) => ResponseFuture::new(async move {
                match read(body).await {
                    Ok(bytes) => respond(bytes).await,
                    Err(problem) => problem.into_response(),
                }
            }),
        }
    }
}

/// Maximum size of a body.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum time until a body has arrived.
const MAX_BODY_TIME: Duration = Duration::from_secs(10);

async fn read<B: Body>(body: B) -> Result<Vec<u8>, Problem> {
    let read = async {
        let (mut body, mut bytes) = (pin!(body), Vec::new());
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(|_| bad_request("the body could not be read"))?;
            let Ok(mut data) = frame.into_data() else { continue }; // trailers
            if data.remaining() > MAX_BODY_BYTES - bytes.len() {
                let detail = format!("the body exceeds {MAX_BODY_BYTES} bytes");
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            while data.has_remaining() {
                let chunk = data.chunk();
                let length = chunk.len();
                bytes.extend_from_slice(chunk);
                data.advance(length);
            }
        }
        Ok(bytes)
    };
    let late = || Err(bad_request(format!("the body did not arrive within {MAX_BODY_TIME:?}")));
    timeout(MAX_BODY_TIME, read).await.unwrap_or_else(|_| late())
}

/// Authorizes an operation, and returns what becomes of the request. `segment` is the id or the
/// name in its path.
pub(super) fn dispatch(
    config: &Config,
    head: &RequestHead<'_>,
    operation: Operation,
    segment: &str,
) -> Result<Dispatched, Problem> {
    let id = || segment.parse::<TaskId>().map_err(|_| unknown_task());
    let change = |action, id, change| {
        let access = authorize_change(config, head, action)?;
        let response = respond_to_change(config.clone(), id, access, change);
        Ok(Dispatched::Response(ResponseFuture::new(response)))
    };
    let pause = |action, what, is_paused| {
        let access = authorize_change(config, head, action)?;
        require_all(config, &access, action)?;
        let name = percent_decode_str(segment).decode_utf8();
        let name = name.map_err(|_| Problem::new(StatusCode::NOT_FOUND, "the name is not UTF-8"))?.into_owned();
        let response = set_paused(config.clone(), what, name, is_paused);
        Ok(Dispatched::Response(ResponseFuture::new(response)))
    };
    match operation {
        Operation::Retry => id().and_then(|id| change(Action::Retry(id), id, Change::Retry)),
        Operation::Discard => id().and_then(|id| change(Action::Discard(id), id, Change::Discard)),
        Operation::Reschedule => {
            let id = id()?;
            let access = authorize_change(config, head, Action::Reschedule(id))?;
            let config = config.clone();
            Ok(Dispatched::NeedsBody(Box::new(move |body| Box::pin(reschedule(config, id, access, body)))))
        }
        Operation::Bulk => {
            let access = authorize_change(config, head, Action::Bulk)?;
            let config = config.clone();
            Ok(Dispatched::NeedsBody(Box::new(move |body| Box::pin(bulk(config, access, body)))))
        }
        Operation::PauseQueue => pause(Action::PauseQueue, Pausable::Queue, true),
        Operation::ResumeQueue => pause(Action::ResumeQueue, Pausable::Queue, false),
        Operation::PauseKind => pause(Action::PauseKind, Pausable::Kind, true),
        Operation::ResumeKind => pause(Action::ResumeKind, Pausable::Kind, false),
        Operation::Sequences => {
            require_all(config, &config.authorize(head, Action::Sequences)?, Action::Sequences)?;
            Ok(Dispatched::Response(ResponseFuture::new(sequences(config.clone()))))
        }
        Operation::ReleaseSequence => {
            let access = authorize_change(config, head, Action::ReleaseSequence)?;
            require_all(config, &access, Action::ReleaseSequence)?;
            let config = config.clone();
            Ok(Dispatched::NeedsBody(Box::new(move |body| Box::pin(release(config, body)))))
        }
        Operation::Queues => {
            require_all(config, &config.authorize(head, Action::Queues)?, Action::Queues)?;
            Ok(Dispatched::Response(ResponseFuture::new(queues(config.clone()))))
        }
        _ => {
            require_all(config, &config.authorize(head, Action::Summary)?, Action::Summary)?;
            Ok(Dispatched::Response(ResponseFuture::new(summary(config.clone()))))
        }
    }
}

/// Authorizes a request that changes something.
///
/// A browser sends a form of another site with the cookies of this one, but asks first whether that
/// site may send JSON. So every change must be JSON, also one without a body.
fn authorize_change(config: &Config, head: &RequestHead<'_>, action: Action) -> Result<Access, Problem> {
    if config.is_read_only {
        return Err(config.limits.deny(&action, "the service is read-only"));
    }
    if !is_json(head.headers()) {
        let detail = "send the header `content-type: application/json`, also without a body";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    config.authorize(head, action)
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (value, other) = (values.next().and_then(|value| value.to_str().ok()), values.next());
    let essence = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") && other.is_none()
}

/// Returns an error if a request may not see the tasks of all owners.
fn require_all(config: &Config, access: &Access, action: Action) -> Result<(), Problem> {
    match access {
        Access::All => Ok(()),
        _ => Err(config.limits.deny(&action, "not allowed: this concerns the tasks of all owners")),
    }
}

/// Converts an error to a response.
fn operation_problem(error: &OperationError) -> Problem {
    if let Some(error) = error.store_error() {
        return store_problem(error);
    }
    let status = if error.is_unknown() {
        StatusCode::NOT_FOUND
    } else if error.is_not_a_job() || error.is_no_queue() {
        StatusCode::NOT_IMPLEMENTED
    } else {
        StatusCode::CONFLICT
    };
    let problem = Problem::new(status, error.to_string());
    error.reason().into_iter().fold(problem, Problem::reason)
}

async fn respond_to_change(config: Config, id: TaskId, access: Access, change: Change) -> Response {
    try_change(&config, id, &access, change).await.unwrap_or_else(Problem::into_response)
}

async fn try_change(config: &Config, id: TaskId, access: &Access, change: Change) -> Result<Response, Problem> {
    config.check_open()?;
    visible(config.source.get(id).await, access)?; // the caller may not change the tasks of others
    let changed = config.source.change(id, change).await.map_err(|error| operation_problem(&error))?;
    Ok(response::status(&changed))
}

/// Body of a request that changes when a job is due.
#[derive(Debug, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "When the next attempt of a queued job is due.")
)]
#[serde(deny_unknown_fields)]
pub(super) struct Reschedule {
    /// A time as in RFC 3339. One in the past makes the job due now.
    #[cfg_attr(feature = "openapi", schema(format = DateTime, example = "2026-03-01T12:30:00Z"))]
    due_at: String,
}

async fn reschedule(config: Config, id: TaskId, access: Access, body: Vec<u8>) -> Response {
    let due_at = match parse::<Reschedule>(&body).and_then(|request| parse_time(&request.due_at)) {
        Ok(due_at) => due_at,
        Err(problem) => return problem.into_response(),
    };
    respond_to_change(config, id, access, Change::Reschedule(due_at)).await
}

/// Parses a time with any offset and any number of decimals.
fn parse_time(text: &str) -> Result<Timestamp, Problem> {
    let time: Result<jiff::Timestamp, _> = text.parse();
    let time = time.map_err(|_| bad_request("`due_at` must be a time such as `2026-03-01T12:30:00Z`"))?;
    Ok(Timestamp::from_millis(u64::try_from(time.as_millisecond()).unwrap_or_default()))
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    // The message names fields and positions, and may contain a piece of the body.
    serde_json::from_slice(body).map_err(|error| bad_request(format!("the body is not valid: {error}")))
}

/// Body of a request that changes many tasks.
#[derive(Debug, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "An operation on all tasks that a filter selects, newest first.")
)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkRequest {
    action: BulkAction,
    filter: BulkFilter,
    /// Continues after this task, with the value of the previous response.
    #[serde(default)]
    after: Option<TaskId>,
    /// Maximum number of tasks that are changed, 1000 if absent.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1000))]
    limit: Option<usize>,
}

/// Maximum number of tasks that a request changes.
const MAX_CHANGED: usize = 1000;

impl BulkRequest {
    /// Returns the part of the list that the request concerns.
    fn page(&self) -> Result<Page, Problem> {
        let limit = self.limit.unwrap_or(MAX_CHANGED);
        if !(1..=MAX_CHANGED).contains(&limit) {
            return Err(bad_request(format!("`limit` must be from 1 to {MAX_CHANGED}")));
        }
        let page = Page::first(limit);
        Ok(self.after.map_or(page, |id| page.after(id)))
    }
}

/// The filter of a bulk operation. A field that is absent or empty selects all tasks.
#[derive(Debug, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "Selects tasks. A field that is absent or empty selects all.")
)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkFilter {
    #[serde(default)]
    state: States,
    /// The name of the tasks.
    #[serde(default)]
    name: Option<String>,
    /// The queue of the jobs.
    #[serde(default)]
    queue: Option<String>,
    /// The owner of the tasks.
    #[serde(default)]
    owner: Option<String>,
    /// A text in the name, the message or the error, or the beginning of the id.
    #[serde(default)]
    text: Option<String>,
    /// The number of the job in River's table.
    #[serde(default)]
    river_id: Option<i64>,
}

/// The states of a filter: a list, or one text as in a query.
#[derive(Debug, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "States as a list, or separated by commas.")
)]
#[serde(untagged)]
pub(super) enum States {
    List(Vec<TaskState>),
    Text(Option<String>),
}

impl Default for States {
    fn default() -> Self {
        Self::Text(None)
    }
}

impl BulkFilter {
    fn into_filter(self) -> Result<Filter, Problem> {
        let mut filter = Filter::default();
        let state = match self.state {
            States::List(states) => {
                let names: Vec<_> = states.into_iter().map(TaskState::as_str).collect();
                Some(names.join(","))
            }
            States::Text(text) => text,
        };
        let fields =
            [("state", state), ("name", self.name), ("queue", self.queue), ("owner", self.owner), ("text", self.text)];
        for (name, value) in fields {
            set_filter(&mut filter, name, value.as_deref().unwrap_or_default())?;
        }
        filter.river_id = self.river_id;
        Ok(filter)
    }
}

async fn bulk(config: Config, access: Access, body: Vec<u8>) -> Response {
    try_bulk(&config, &access, &body).await.unwrap_or_else(Problem::into_response)
}

async fn try_bulk(config: &Config, access: &Access, body: &[u8]) -> Result<Response, Problem> {
    let request: BulkRequest = parse(body)?;
    let page = request.page()?;
    let (action, filter) = (request.action, request.filter.into_filter()?);
    config.check_open()?;
    let Some(filter) = restricted(filter, access) else { return Ok(response::json(&BulkReport::default())) };
    let too_many = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "another operation on many tasks is in progress");
    let _permit = config.limits.try_acquire_bulk(access).ok_or_else(too_many)?;
    let report = config.source.bulk(action, &filter, page).await.map_err(|error| operation_problem(&error))?;
    Ok(response::json(&report))
}

/// Needs no permit: all requests wait for the same summary, so that they must not keep others from
/// lists.
async fn summary(config: Config) -> Response {
    match config.source.summary().await {
        Ok(summary) => response::json(&*summary),
        Err(error) => store_problem(&error).into_response(),
    }
}

async fn queues(config: Config) -> Response {
    try_queues(&config).await.unwrap_or_else(Problem::into_response)
}

async fn try_queues(config: &Config) -> Result<Response, Problem> {
    let permit = config.acquire_list()?;
    let mut queues = config.source.queues().await.map_err(|error| operation_problem(&error))?;
    drop(permit);
    // The kinds of other processes.
    let summary = config.source.summary().await.map_err(|error| store_problem(&error))?;
    for group in summary.groups.iter().filter(|group| group.queue.is_some()) {
        if !queues.kinds.iter().any(|kind| kind.name == group.name) {
            queues.kinds.push(QueueState::new(&*group.name, false));
        }
    }
    queues.kinds.sort_unstable();
    Ok(response::json(&queues))
}

async fn set_paused(config: Config, what: Pausable, name: String, is_paused: bool) -> Response {
    match config.source.set_paused(what, &name, is_paused).await {
        Ok(()) => response::json(&QueueState::new(name, is_paused)),
        Err(error) => operation_problem(&error).into_response(),
    }
}

/// The sequences that hold because a job has failed.
#[derive(Debug, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The sequences that hold because a job has failed.")
)]
pub(super) struct Sequences {
    /// Those that have waited for longest first, at most 1000.
    sequences: Vec<BlockedSequence>,
}

async fn sequences(config: Config) -> Response {
    try_sequences(&config).await.unwrap_or_else(Problem::into_response)
}

async fn try_sequences(config: &Config) -> Result<Response, Problem> {
    let _permit = config.acquire_list()?;
    let sequences = config.source.blocked_sequences().await.map_err(|error| operation_problem(&error))?;
    Ok(response::json(&Sequences { sequences }))
}

/// Body of a request that continues a sequence.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "The sequence that continues."))]
#[serde(deny_unknown_fields)]
pub(super) struct Release {
    /// The key of the sequence.
    key: String,
}

/// Response to a request that continues a sequence.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(description = "How many sequences were released."))]
pub(super) struct Released {
    /// 1, or 0 if the sequence does not hold.
    released: u32,
}

async fn release(config: Config, body: Vec<u8>) -> Response {
    let key = match parse::<Release>(&body) {
        Ok(request) => request.key,
        Err(problem) => return problem.into_response(),
    };
    match config.source.release_sequence(&key).await {
        Ok(is_released) => response::json(&Released { released: is_released.into() }),
        Err(error) => operation_problem(&error).into_response(),
    }
}
