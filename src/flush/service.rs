use std::{fmt, sync::Arc};

use http::{Request, Response};
use http_body::Body;

use super::connection::Connection;
use crate::after_response::{Exchange, Guard, Observer, RequestLine, ResponseBody, ResponseFuture, Tracked};

/// The service of a tracked connection. Made by [`Tracker::track`](super::Tracker::track).
///
/// On HTTP/2 it removes the field by which its [`TrackedIo`](super::TrackedIo) names the stream of
/// the request, so it should be the outermost service.
#[derive(Clone)]
pub struct TrackedService<S> {
    inner: S,
    connection: Arc<Connection>,
}

impl<S> TrackedService<S> {
    pub(super) fn new(inner: S, connection: Arc<Connection>) -> Self {
        Self { inner, connection }
    }

    /// Returns a reference to the inner service.
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
        let mut guard = begin(&self.connection, &mut request);
        let future = guard.run(|| self.inner.call(request));
        ResponseFuture::new(future, Observer::Owner(guard))
    }
}

impl<S: fmt::Debug> fmt::Debug for TrackedService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Begins the exchange of a request on its connection, and leaves it in the extensions, where the
/// layer finds it.
fn begin<B>(connection: &Connection, request: &mut Request<B>) -> Guard {
    let line = RequestLine::new(request);
    let (exchange, waiter) = Exchange::tracked(line, connection.request_time(), connection.has_socket());
    connection.begin(request.version(), request.headers_mut(), waiter);
    request.extensions_mut().insert(Tracked(exchange.clone()));
    Guard::new(exchange, line)
}
