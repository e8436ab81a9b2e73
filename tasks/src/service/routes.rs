//! The routes of the service. Requests are matched with this table, and the OpenAPI document is
//! generated from it.

use http::Method;

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/",
        operation: Operation::List,
        summary: "List tasks, newest first",
        parameters: &["state", "name", "limit", "after"],
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
        responses: &[(200, "The OpenAPI document.", Content::Document), (403, "Not allowed.", Content::Problem)],
    },
    Route {
        method: Method::GET,
        path: "/{id}",
        operation: Operation::Show,
        summary: "Get the status of a task",
        parameters: &["id", "Prefer"],
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
];

#[cfg_attr(not(feature = "openapi"), allow(dead_code, reason = "the description is for the OpenAPI document"))]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) operation: Operation,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [&'static str],
    /// Status code, description and content of each possible response.
    pub(super) responses: &'static [(u16, &'static str, Content)],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    List,
    #[cfg(feature = "openapi")]
    Describe,
    Show,
    Cancel,
    Events,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    ListOrPage,
    #[cfg(feature = "openapi")]
    Document,
    Status,
    Events,
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

/// Returns the operation of a request, and the first segment of its path. HEAD is routed like GET.
pub(super) fn find<'a>(method: &Method, path: &'a str) -> Result<(Operation, &'a str), RouteError> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let path = path.strip_prefix('/').unwrap_or(path);
    let segments: Vec<_> = path.splitn(3, '/').collect();
    let Some(template) = ROUTES.iter().map(|route| route.path).find(|template| matches(template, &segments)) else {
        return Err(RouteError::PathNotFound);
    };
    let routes = ROUTES.iter().filter(|route| route.path == template);
    match routes.clone().find(|route| route.method == *method) {
        Some(route) => Ok((route.operation, segments[0])),
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
            .all(|(expected, actual)| expected == *actual || (expected == "{id}" && !actual.is_empty()))
}
