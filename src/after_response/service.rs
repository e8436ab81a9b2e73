use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    AfterResponse, ResponseBody, ResponseFuture, exchange::Exchange, guard::Guard, observer::Observer,
    progress::RequestLine, tracked::Tracked,
};
use crate::background::Background;

/// A service whose requests carry an [`AfterResponse`]. Made by [`AfterResponseLayer`](super::AfterResponseLayer).
///
/// See the [module docs](crate::after_response).
#[derive(Debug, Clone)]
pub struct AfterResponseService<S> {
    inner: S,
    background: Background,
}

impl<S> AfterResponseService<S> {
    pub(super) fn new(inner: S, background: Background) -> Self {
        Self { inner, background }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for AfterResponseService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: fmt::Display,
    ResBody: Body,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let line = RequestLine::new(&request);
        let extensions = request.extensions_mut();
        // The outermost owns the response: what it says of the end is then true of what goes out.
        let outer = match extensions.remove::<AfterResponse>() {
            Some(outer) => Some(outer),
            None => extensions.remove().map(|Tracked(exchange)| AfterResponse::new(exchange, self.background.clone())),
        };
        let (after, mut observer) = match outer {
            Some(outer) => {
                let (after, attempt) = outer.for_attempt();
                (after, Observer::Attempt(attempt))
            }
            None => {
                let exchange = Arc::new(Exchange::untracked(line));
                let guard = Guard::new(exchange.clone(), line);
                (AfterResponse::new(exchange, self.background.clone()), Observer::Owner(guard))
            }
        };
        extensions.insert(after);
        let future = observer.inside(|| self.inner.call(request));
        ResponseFuture::new(future, observer)
    }
}
