use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;

use super::{
    ResponseBody,
    respond::{Answer, finish},
};

/// What a [`StatusService`](super::StatusService) and a [`StatusAlias`](super::StatusAlias) return.
///
/// Boxed: a status is asked for once a second, not on the path of every request.
pub struct ResponseFuture {
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
    is_head: bool,
}

impl ResponseFuture {
    pub(super) fn new(answer: impl Future<Output = Answer> + Send + 'static) -> Self {
        Self { answer: Box::pin(answer), is_head: false }
    }

    pub(super) fn ready(answer: Answer) -> Self {
        Self::new(std::future::ready(answer))
    }

    /// For a HEAD request, or another.
    pub(super) fn finished(self, is_head: bool) -> Self {
        Self { is_head, ..self }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.answer.as_mut().poll(cx));
        Poll::Ready(Ok(finish(answer, self.is_head)))
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
