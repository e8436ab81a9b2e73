use http::Method;

/// What the service can be asked, and how it answers: what requests are matched with, and what the OpenAPI document is made of.
pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/",
        operation: Operation::List,
        summary: "Tasks, the newest first; for browsers a page that shows them",
        parameters: &["state", "name", "limit", "after"],
        answers: &[
            (200, "A part of the list. Asked for HTML: the page.", Content::ListOrPage),
            (400, "The query cannot be read.", Content::Problem),
            (403, "Not allowed.", Content::Problem),
            (500, "The store failed.", Content::Problem),
            (503, "The store does not answer.", Content::Problem),
        ],
    },
    #[cfg(feature = "openapi")]
    Route {
        method: Method::GET,
        path: "/openapi.json",
        operation: Operation::Describe,
        summary: "This document",
        parameters: &[],
        answers: &[(200, "It.", Content::Document), (403, "Not allowed.", Content::Problem)],
    },
    Route {
        method: Method::GET,
        path: "/{id}",
        operation: Operation::Show,
        summary: "The status of a task",
        parameters: &["id", "Prefer"],
        answers: &[
            (200, "The status, also of a task that failed.", Content::Status),
            (403, "Not allowed.", Content::Problem),
            (404, "There is no such task, or it is somebody else's.", Content::Problem),
            (410, "There was such a task; it is kept no more.", Content::Problem),
            (500, "The store failed.", Content::Problem),
            (503, "The store does not answer.", Content::Problem),
        ],
    },
    Route {
        method: Method::DELETE,
        path: "/{id}",
        operation: Operation::Cancel,
        summary: "Ask to cancel a task",
        parameters: &["id"],
        answers: &[
            (200, "It is over; the status says how.", Content::Status),
            (202, "It was asked to stop.", Content::Status),
            (403, "Not allowed, or the service is read-only.", Content::Problem),
            (404, "There is no such task, or it is somebody else's.", Content::Problem),
            (410, "There was such a task; it is kept no more.", Content::Problem),
            (500, "The store failed.", Content::Problem),
            (503, "The process is about to end, or the store does not answer.", Content::Problem),
        ],
    },
    Route {
        method: Method::GET,
        path: "/{id}/events",
        operation: Operation::Events,
        summary: "Follow a task to its end",
        parameters: &["id", "Last-Event-ID"],
        answers: &[
            (200, "Events `queued`, `started`, `progress` and `finished`, each with the status.", Content::Events),
            (204, "All was told.", Content::Nothing),
            (403, "Not allowed.", Content::Problem),
            (404, "There is no such task, or it is somebody else's.", Content::Problem),
            (410, "There was such a task; it is kept no more.", Content::Problem),
            (500, "The store failed.", Content::Problem),
            (503, "Too many streams are open, or the store does not answer.", Content::Problem),
        ],
    },
];

#[cfg_attr(not(feature = "openapi"), allow(dead_code))]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) operation: Operation,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [&'static str],
    pub(super) answers: &'static [(u16, &'static str, Content)],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Cancel,
    #[cfg(feature = "openapi")]
    Describe,
    Events,
    List,
    Show,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    #[cfg(feature = "openapi")]
    Document,
    Events,
    ListOrPage,
    Nothing,
    Problem,
    Status,
}

/// Why nothing is found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotFound {
    /// There is the path, with these methods.
    Method(String),
    Path,
}

/// What is wanted, and the id in the path if it has one. HEAD is GET without a body.
pub(super) fn find<'a>(method: &Method, path: &'a str) -> Result<(Operation, &'a str), NotFound> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let path = path.strip_prefix('/').unwrap_or(path);
    let segments: Vec<_> = path.splitn(3, '/').collect();
    let Some(template) = ROUTES.iter().map(|route| route.path).find(|template| fits(template, &segments)) else {
        return Err(NotFound::Path);
    };
    let mut routes = ROUTES.iter().filter(|route| route.path == template);
    match routes.clone().find(|route| route.method == *method) {
        Some(route) => Ok((route.operation, segments[0])),
        None => {
            let mut allowed: Vec<_> = routes.by_ref().map(|route| route.method.as_str()).collect();
            if allowed.contains(&"GET") {
                allowed.insert(1, "HEAD");
            }
            Err(NotFound::Method(allowed.join(", ")))
        }
    }
}

fn fits(template: &str, segments: &[&str]) -> bool {
    let template = template.trim_start_matches('/').split('/');
    template.clone().count() == segments.len()
        && template.zip(segments).all(|(wanted, is)| wanted == *is || (wanted == "{id}" && !is.is_empty()))
}
