//! The routes of the service. Requests are matched with this table, and the OpenAPI document is
//! generated from it.

use http::Method;

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/",
        operation: Operation::List,
        summary: "List tasks, newest first",
        parameters: &["state", "name", "queue", "owner", "text", "river_id", "limit", "after"],
        body: None,
        responses: &[
            (200, "A page of the list. For `Accept: text/html`, the HTML page.", Content::ListOrPage),
            (400, "A query parameter is not valid.", Content::Problem),
            (403, "Not allowed.", Content::Problem),
            (500, "The task database failed.", Content::Problem),
            (503, "Too many lists are being read, or the task database is unavailable.", Content::Problem),
        ],
    },
    #[cfg(feature = "openapi")]
    Route {
        method: Method::GET,
        path: "/openapi.json",
        operation: Operation::Describe,
        summary: "Get this document",
        parameters: &[],
        body: None,
        responses: &[(200, "The OpenAPI document.", Content::Document), (403, "Not allowed.", Content::Problem)],
    },
    Route {
        method: Method::GET,
        path: "/summary",
        operation: Operation::Summary,
        summary: "Get the numbers of tasks, as they were a short time ago",
        parameters: &[],
        body: None,
        responses: &[
            (200, "The numbers by state, name and queue.", Content::Summary),
            FORBIDDEN_TO_SOME,
            FAILED,
            (503, "Too many lists are being read, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::GET,
        path: "/queues",
        operation: Operation::Queues,
        summary: "List queues and kinds of jobs",
        parameters: &[],
        body: None,
        responses: &[
            (200, "The queues and the kinds.", Content::Queues),
            FORBIDDEN_TO_SOME,
            FAILED,
            NO_QUEUE,
            (503, "Too many lists are being read, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::POST,
        path: "/queues/{name}/pause",
        operation: Operation::PauseQueue,
        summary: "Pause a queue",
        parameters: &["{name}"],
        body: None,
        responses: &[
            (200, "The queue.", Content::QueueState),
            FORBIDDEN_TO_SOME,
            (404, "No process has worked the queue.", Content::Problem),
            NO_JSON,
            FAILED,
            NO_QUEUE,
            UNAVAILABLE,
        ],
    },
    Route {
        method: Method::POST,
        path: "/queues/{name}/resume",
        operation: Operation::ResumeQueue,
        summary: "Resume a queue",
        parameters: &["{name}"],
        body: None,
        responses: &[
            (200, "The queue.", Content::QueueState),
            FORBIDDEN_TO_SOME,
            (404, "No process has worked the queue.", Content::Problem),
            NO_JSON,
            FAILED,
            NO_QUEUE,
            UNAVAILABLE,
        ],
    },
    Route {
        method: Method::POST,
        path: "/kinds/{name}/pause",
        operation: Operation::PauseKind,
        summary: "Pause a kind of jobs",
        parameters: &["{name}"],
        body: None,
        responses: &[
            (200, "The kind.", Content::QueueState),
            FORBIDDEN_TO_SOME,
            (404, "The kind is not valid.", Content::Problem),
            (409, "1000 kinds are paused.", Content::Problem),
            NO_JSON,
            FAILED,
            NO_QUEUE,
            UNAVAILABLE,
        ],
    },
    Route {
        method: Method::POST,
        path: "/kinds/{name}/resume",
        operation: Operation::ResumeKind,
        summary: "Resume a kind of jobs",
        parameters: &["{name}"],
        body: None,
        responses: &[
            (200, "The kind.", Content::QueueState),
            FORBIDDEN_TO_SOME,
            (404, "The kind is not valid.", Content::Problem),
            NO_JSON,
            FAILED,
            NO_QUEUE,
            UNAVAILABLE,
        ],
    },
    Route {
        method: Method::GET,
        path: "/sequences",
        operation: Operation::Sequences,
        summary: "List the sequences that hold because a job has failed",
        parameters: &[],
        body: None,
        responses: &[
            (200, "The sequences, those that have waited for longest first, at most 1000.", Content::Sequences),
            FORBIDDEN_TO_SOME,
            FAILED,
            NO_QUEUE,
            (503, "Too many lists are being read, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::POST,
        path: "/sequences/release",
        operation: Operation::ReleaseSequence,
        summary: "Continue a sequence that holds",
        parameters: &[],
        body: Some("Release"),
        responses: &[
            (200, "How many sequences were released: 0 or 1.", Content::Released),
            (400, "The body is not valid.", Content::Problem),
            FORBIDDEN_TO_SOME,
            (413, "The body exceeds 64 KiB.", Content::Problem),
            NO_JSON,
            FAILED,
            NO_QUEUE,
            UNAVAILABLE,
        ],
    },
    Route {
        method: Method::POST,
        path: "/bulk",
        operation: Operation::Bulk,
        summary: "Retry, cancel or discard many tasks",
        parameters: &[],
        body: Some("BulkRequest"),
        responses: &[
            (200, "How many tasks were changed, at most 1000.", Content::BulkReport),
            (400, "The body is not valid.", Content::Problem),
            (403, "Not allowed, or the service is read-only.", Content::Problem),
            (413, "The body exceeds 64 KiB.", Content::Problem),
            NO_JSON,
            FAILED,
            NO_QUEUE,
            (503, "Another such operation is in progress, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::GET,
        path: "/{id}",
        operation: Operation::Show,
        summary: "Get the status of a task",
        parameters: &["id", "Prefer"],
        body: None,
        responses: &[
            (200, "The status. A task that failed has a status too.", Content::Status),
            (403, "Not allowed.", Content::Problem),
            (404, "The task does not exist, or has another owner.", Content::Problem),
            (410, "The record of the task was evicted.", Content::Problem),
            (500, "The task database failed.", Content::Problem),
            (503, "The task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::DELETE,
        path: "/{id}",
        operation: Operation::Cancel,
        summary: "Request cancellation of a task",
        parameters: &["id"],
        body: None,
        responses: &[
            (200, "The task has finished. The status says how.", Content::Status),
            (202, "Cancellation was requested.", Content::Status),
            (403, "Not allowed, or the service is read-only.", Content::Problem),
            (404, "The task does not exist, or has another owner.", Content::Problem),
            (410, "The record of the task was evicted.", Content::Problem),
            (500, "The task database failed.", Content::Problem),
            (503, "The process is shutting down, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::GET,
        path: "/{id}/events",
        operation: Operation::Events,
        summary: "Follow the events of a task",
        parameters: &["id", "Last-Event-ID"],
        body: None,
        responses: &[
            (
                200,
                "A stream of the events `queued`, `started`, `progress` and `finished`. The data of each is a status.",
                Content::Events,
            ),
            (204, "The task has finished, and the client has received all events.", Content::Nothing),
            (403, "Not allowed.", Content::Problem),
            (404, "The task does not exist, or has another owner.", Content::Problem),
            (410, "The record of the task was evicted.", Content::Problem),
            (500, "The task database failed.", Content::Problem),
            (503, "Too many streams are open, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::PATCH,
        path: "/{id}",
        operation: Operation::Reschedule,
        summary: "Change when a queued job is due",
        parameters: &["id"],
        body: Some("Reschedule"),
        responses: &[
            (200, "The job is due at that time.", Content::Status),
            (400, "The body is not valid.", Content::Problem),
            (403, "Not allowed, or the service is read-only.", Content::Problem),
            (404, "The task does not exist, or has another owner.", Content::Problem),
            (409, "The state of the job does not permit it.", Content::Problem),
            (410, "The record of the task was evicted.", Content::Problem),
            (413, "The body exceeds 64 KiB.", Content::Problem),
            NO_JSON,
            FAILED,
            (501, "The task is not a job, or this process has no job queue.", Content::Problem),
            (503, "The process is shutting down, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::POST,
        path: "/{id}/retry",
        operation: Operation::Retry,
        summary: "Queue a finished job again",
        parameters: &["id"],
        body: None,
        responses: &[
            (200, "The job is queued again, under the same id.", Content::Status),
            (403, "Not allowed, or the service is read-only.", Content::Problem),
            (404, "The task does not exist, or has another owner.", Content::Problem),
            (409, "The state of the job does not permit it.", Content::Problem),
            (410, "The record of the task was evicted.", Content::Problem),
            NO_JSON,
            FAILED,
            (501, "The task is not a job, or this process has no job queue.", Content::Problem),
            (503, "The process is shutting down, or the task database is unavailable.", Content::Problem),
        ],
    },
    Route {
        method: Method::POST,
        path: "/{id}/discard",
        operation: Operation::Discard,
        summary: "End a queued job",
        parameters: &["id"],
        body: None,
        responses: &[
            (200, "The job has failed with class `discarded`.", Content::Status),
            (403, "Not allowed, or the service is read-only.", Content::Problem),
            (404, "The task does not exist, or has another owner.", Content::Problem),
            (409, "The state of the job does not permit it.", Content::Problem),
            (410, "The record of the task was evicted.", Content::Problem),
            NO_JSON,
            FAILED,
            (501, "The task is not a job, or this process has no job queue.", Content::Problem),
            (503, "The process is shutting down, or the task database is unavailable.", Content::Problem),
        ],
    },
];

/// Status code, description and content of a response.
type RouteResponse = (u16, &'static str, Content);

const FORBIDDEN_TO_SOME: RouteResponse = (
    403,
    "Not allowed, also to those who may not see the tasks of all owners, or the service is read-only.",
    Content::Problem,
);
const NO_JSON: RouteResponse = (415, "The header `content-type: application/json` is missing.", Content::Problem);
const FAILED: RouteResponse = (500, "The task database failed.", Content::Problem);
const NO_QUEUE: RouteResponse = (501, "This process has no job queue.", Content::Problem);
const UNAVAILABLE: RouteResponse = (503, "The task database is unavailable.", Content::Problem);

#[cfg_attr(not(feature = "openapi"), allow(dead_code, reason = "the description is for the OpenAPI document"))]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) operation: Operation,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [&'static str],
    /// Name of the schema of the body.
    pub(super) body: Option<&'static str>,
    /// Every possible response.
    pub(super) responses: &'static [RouteResponse],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    List,
    #[cfg(feature = "openapi")]
    Describe,
    Show,
    Cancel,
    Events,
    Retry,
    Discard,
    Reschedule,
    Bulk,
    Summary,
    Queues,
    PauseQueue,
    ResumeQueue,
    PauseKind,
    ResumeKind,
    Sequences,
    ReleaseSequence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    ListOrPage,
    #[cfg(feature = "openapi")]
    Document,
    Status,
    Events,
    BulkReport,
    Summary,
    Queues,
    QueueState,
    Sequences,
    Released,
    Problem,
    Nothing,
}

/// Error of [`find`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    PathNotFound,
    /// The path exists with other methods, which are listed as in an `Allow` header.
    MethodNotAllowed(String),
}

/// Returns the operation of a request, and the id or the name in its path. HEAD is routed like GET.
pub(super) fn find<'a>(method: &Method, path: &'a str) -> Result<(Operation, &'a str), RouteError> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let path = path.strip_prefix('/').unwrap_or(path);
    let segments: Vec<_> = path.splitn(3, '/').collect();
    let Some(template) = ROUTES.iter().map(|route| route.path).find(|template| matches(template, &segments)) else {
        return Err(RouteError::PathNotFound);
    };
    let routes = ROUTES.iter().filter(|route| route.path == template);
    match routes.clone().find(|route| route.method == *method) {
        Some(route) => {
            let is_parameter = |segment: &str| segment.starts_with('{');
            let index = template.trim_start_matches('/').split('/').position(is_parameter).unwrap_or_default();
            Ok((route.operation, segments.get(index).copied().unwrap_or_default()))
        }
        None => {
            let mut allowed: Vec<_> = routes.map(|route| route.method.as_str()).collect();
            if allowed.contains(&"GET") {
                allowed.insert(1, "HEAD");
            }
            Err(RouteError::MethodNotAllowed(allowed.join(", ")))
        }
    }
}

fn matches(template: &str, segments: &[&str]) -> bool {
    let template = template.trim_start_matches('/').split('/');
    template.clone().count() == segments.len()
        && template
            .zip(segments)
            .all(|(expected, actual)| expected == *actual || (expected.starts_with('{') && !actual.is_empty()))
}
