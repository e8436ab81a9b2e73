use std::{
    convert::Infallible,
    fmt,
    task::{Context, Poll},
};

use http::{Method, Request, StatusCode};
use serde::Serialize;
use tower_offload::offload::RequestHead;
use tower_service::Service;

use super::{
    access::{Access, Action},
    config::Config,
    list::parse_query,
    response::{self, Response, ResponseFuture, method_not_allowed, store_problem, unknown_task},
};
use crate::{Failure, Json, Status, TaskId, TaskState, problem::Problem, store::Found};

/// Reports the status of a task at `GET /status?task_id=`, with the states `running`, `completed`
/// and `failed`.
///
/// A queued task is `running`. A task that ended without a result is `failed`. An unknown task is
/// 404, and a request without exactly one `task_id` is 400.
///
/// The service has no paths of its own, so mount it with `route_service`. It uses the authorization
/// of the [`StatusService`](super::StatusService) that created it.
#[derive(Clone)]
pub struct StatusAlias {
    config: Config,
}

impl StatusAlias {
    pub(super) fn new(config: Config) -> Self {
        Self { config }
    }

    fn respond(&self, head: &RequestHead<'_>) -> Result<ResponseFuture, Problem> {
        let query = parse_query(head.uri().query().unwrap_or_default())?;
        let missing = || Problem::new(StatusCode::BAD_REQUEST, "`task_id` is missing");
        let mut ids = query.into_iter().filter(|(name, _)| name == "task_id").map(|(_, id)| id);
        let id = ids.next().ok_or_else(missing)?;
        if ids.next().is_some() {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "`task_id` must not be repeated"));
        }
        let id: TaskId = id.parse().map_err(|_| unknown_task())?;
        let access = self.config.authorize(head, Action::Show(id))?;
        Ok(ResponseFuture::new(show(self.config.clone(), id, access)))
    }
}

#[derive(Debug, Serialize)]
struct AliasStatus {
    task_id: TaskId,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

async fn show(config: Config, id: TaskId, access: Access) -> Response {
    let status = match config.source.get(id).await {
        Ok(Found::Record(record)) if access.permits(record.owner.as_deref()) => Status::from(&*record),
        Ok(_) => return unknown_task().into_response(),
        Err(error) => return store_problem(&error).into_response(),
    };
    let state = match status.state {
        TaskState::Queued | TaskState::Running => "running",
        TaskState::Succeeded => "completed",
        _ => "failed",
    };
    response::json(&AliasStatus { task_id: id, status: state, result: status.result, error: status.error })
}

impl<B> Service<Request<B>> for StatusAlias {
    type Response = Response;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Responds to a request. Its body is dropped unread.
    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let head = RequestHead::new(&request);
        if head.method() != Method::GET && head.method() != Method::HEAD {
            return ResponseFuture::ready(method_not_allowed("GET, HEAD"));
        }
        let future = self.respond(&head).unwrap_or_else(|problem| ResponseFuture::ready(problem.into_response()));
        future.for_method(head.method())
    }
}

impl fmt::Debug for StatusAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusAlias").field("config", &self.config).finish_non_exhaustive()
    }
}
