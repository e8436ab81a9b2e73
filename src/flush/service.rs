use std::{fmt, sync::Arc};

use http::{Request, Response};
use http_body::Body;

use super::{connection::Connection, exchange};
use crate::after_response::{Observer, ResponseBody, ResponseFuture};

/// The service of a tracked connection. Made by [`Tracker::track`](super::Tracker::track).
///
/// hyper calls it as the request comes, before it reads on: that is how a request meets the number of its HTTP/2 stream. A
/// service around it that calls it later gets responses which are only handed over.
#[derive(Clone)]
pub struct TrackedService<S> {
    inner: S,
    connection: Arc<Connection>,
}

impl<S> TrackedService<S> {
    pub(super) fn new(inner: S, connection: Arc<Connection>) -> Self {
        Self { inner, connection }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> hyper::service::Service<Request<ReqBody>> for TrackedService<S>
where
    S: hyper::service::Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: fmt::Display,
    ResBody: Body,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn call(&self, mut request: Request<ReqBody>) -> Self::Future {
        let stream = self.connection.take_stream();
        let mut guard = exchange::begin(&self.connection, stream, &mut request);
        let future = guard.inside(|| self.inner.call(request));
        ResponseFuture::new(future, Observer::Owner(guard))
    }
}

impl<S: fmt::Debug> fmt::Debug for TrackedService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
