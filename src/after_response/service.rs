use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    AfterResponse, ResponseBody,
    exchange::{Exchange, Tracked},
    guard::{Guard, Observer},
    progress::RequestLine,
};
use crate::background::Background;

/// A service that gives each request an [`AfterResponse`] handle. Created by
/// [`AfterResponseLayer`](super::AfterResponseLayer).
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

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
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
        let handle = |exchange| AfterResponse::new(exchange, self.background.clone());
        // The outermost observer owns the response, because only it sees the response that is sent.
        // It is a tracked connection, or an outer layer, which has left its handle in the
        // extensions.
        let mut observer = if let Some(Tracked(exchange)) = extensions.remove() {
            let mut after = handle(exchange);
            let attempt = after.begin_attempt();
            extensions.insert(after);
            Observer::Attempt(attempt)
        } else if let Some(outer) = extensions.get_mut::<AfterResponse>() {
            Observer::Attempt(outer.begin_attempt())
        } else {
            let exchange = Exchange::untracked(line);
            extensions.insert(handle(exchange.clone()));
            Observer::Owner(Guard::new(exchange, line))
        };
        let future = observer.run(|| self.inner.call(request));
        ResponseFuture::new(future, observer)
    }
}

pin_project! {
    /// Response future of [`AfterResponseService`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it returns, the outcome is
    /// [`NoResponse`](super::End::NoResponse).
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        // Declared after `inner`, so that what a cancelled handler holds is released before
        // anything runs after it.
        observer: Observer,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, observer: Observer) -> Self {
        Self { inner, observer }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: fmt::Display,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let observer = this.observer;
        Poll::Ready(match ready!(observer.run(|| this.inner.poll(cx))) {
            Ok(response) => {
                let observer = observer.on_response(&response);
                Ok(response.map(|body| ResponseBody::new(body, observer)))
            }
            Err(error) => {
                observer.on_error(&error);
                Err(error)
            }
        })
    }
}
