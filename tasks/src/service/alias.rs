use std::{
    convert::Infallible,
    fmt,
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tower_service::Service;

use super::{
    Access, Action, ResponseBody, ResponseFuture,
    config::Config,
    problem::{self, Problem},
    query,
    respond::{self, Answer},
    service::{allowed, refuse, refuse_method},
};
use crate::{Failure, Json, Status, TaskId, TaskState, store::Found};
use tower_offload::offload::RequestHead as Head;

/// `GET /status?task_id=`, as many services have it: 404, or whether the task is `running`, `completed` or `failed`.
///
/// A task that is queued is `running`, one that ended without a result is `failed`. It has no path of its own: it is mounted at one. Who may
/// see what is decided as for the [`StatusService`](super::StatusService) that it is made of.
#[derive(Clone)]
pub struct StatusAlias {
    config: Config,
}

impl StatusAlias {
    pub(super) fn new(config: Config) -> Self {
        Self { config }
    }

    fn answer(&self, head: &Head<'_>) -> Result<ResponseFuture, Box<Answer>> {
        if head.method() != Method::GET && head.method() != Method::HEAD {
            return Err(refuse_method("GET, HEAD"));
        }
        let wrong = |what| refuse(Problem::new(StatusCode::BAD_REQUEST, what));
        let pairs = query::parse(head.uri().query().unwrap_or_default())
            .ok_or_else(|| wrong("the query is not encoded as a form is"))?;
        let id =
            pairs.into_iter().find(|(name, _)| name == "task_id").ok_or_else(|| wrong("`task_id` is not there"))?.1;
        let id: TaskId = id.parse().map_err(|_| refuse(problem::unknown()))?;
        let access = allowed(&self.config, head, Action::Show(id))?;
        Ok(ResponseFuture::new(show(self.config.clone(), id, access)))
    }
}

#[derive(Debug, Serialize)]
struct Body {
    task_id: TaskId,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

async fn show(config: Config, id: TaskId, access: Access) -> Answer {
    let status = match config.source.get(id).await {
        Ok(Found::Record(record)) if access.sees(record.owner.as_deref()) => Status::from(&*record),
        Ok(_) => return problem::unknown().into_response(),
        Err(error) => return problem::of_store(&error).into_response(),
    };
    let word = match status.state {
        TaskState::Queued | TaskState::Running => "running",
        TaskState::Succeeded => "completed",
        TaskState::Cancelled | TaskState::Failed | TaskState::Lost | TaskState::TimedOut => "failed",
    };
    respond::json(&Body { task_id: id, status: word, result: status.result, error: status.error })
}

impl<B> Service<Request<B>> for StatusAlias {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The body of the request is dropped unread.
    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        let head = Head::new(&request);
        let future = self.answer(&head).unwrap_or_else(|answer| ResponseFuture::ready(*answer));
        future.finished(head.method() == Method::HEAD)
    }
}

impl fmt::Debug for StatusAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusAlias").field("config", &self.config).finish_non_exhaustive()
    }
}
