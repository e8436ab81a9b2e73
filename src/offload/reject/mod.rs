//! Strategies that answer calls which fail with a [`CallError`].

mod http;
mod problem;
mod watch;

use std::{error::Error, fmt, sync::Arc, time::Duration};

pub use self::{
    http::{HttpReject, Protocol},
    problem::ProblemJson,
    watch::Watch,
};
use crate::pool::CallError;

/// Answers a call that fails with a [`CallError`], with a response or an error.
///
/// [`HttpReject`] is the default and fits every HTTP stack. [`ProblemJson`] adds a body.
/// [`RejectWithError`] is for services other than HTTP.
/// [`OffloadLayer::reject_with`](super::OffloadLayer::reject_with) takes a closure.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer for a service with request `{Req}`, response `{Res}` and error `{E}`",
    note = "the default `HttpReject` needs an `http::Request`, and an `http::Response<B>` where `B: Default`",
    note = "`ProblemJson` needs `B: From<bytes::Bytes>` as well; \
            `RejectWithError` needs the error to be `Into<Box<dyn Error + Send + Sync>>`",
    note = "use `.reject(RejectWithError)` or `.reject_with(|error| ..)` on the layer"
)]
pub trait Reject<Req, Res, E>: Clone + Send + Sync {
    /// The error type of the offloaded service.
    type Error;
    /// The data that the answer needs from the request, which moves to the pool.
    type Hint: Send + 'static;

    /// Reads the hint from the request.
    fn hint(&self, request: &Req) -> Self::Hint;

    /// Returns a watch that receives the response of the call on the pool, even if the caller has
    /// left by then. Default: none.
    ///
    /// [`HttpReject`] and [`ProblemJson`] return one for a request with an `AfterResponse`, so that
    /// the tasks of a handler that succeeds run even if its client has left. A strategy that wraps
    /// another one should call the other one's `watch`.
    fn watch(&self, request: &Req) -> Option<Watch<Res>> {
        let _ = request;
        None
    }

    /// Converts an error of the inner service to one of the offloaded service.
    fn map_err(&self, error: E) -> Self::Error;

    /// Creates the answer. `retry_after` is the time that a new call is expected to wait:
    /// [`Pool::expected_wait`](crate::pool::Pool::expected_wait).
    fn reject(&self, hint: Self::Hint, error: CallError, retry_after: Duration) -> Result<Res, Self::Error>;
}

/// Rejects with an error, on any tower stack whose errors are not `Infallible`. Axum needs
/// infallible services: keep the default strategy there.
///
/// The error type becomes `Box<dyn Error + Send + Sync>`, as with tower's `LoadShed`, `Timeout` and
/// `Buffer`. Use `error.downcast_ref::<CallError>()` to find a rejection in it.
///
/// ```
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// use tower_offload::{CallError, OffloadLayer, ThreadPool, offload::RejectWithError, pool::Pool};
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = ThreadPool::cpu();
/// let mut service = ServiceBuilder::new()
///     .layer(OffloadLayer::new(pool.clone()).reject(RejectWithError))
///     .service(service_fn(async |number: u32| Ok::<_, std::convert::Infallible>(number + 1)));
/// assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
///
/// pool.admission().close();
/// let error = service.ready().await.unwrap().call(1).await.unwrap_err();
/// assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct RejectWithError;

impl<Req, Res, E> Reject<Req, Res, E> for RejectWithError
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Error = Box<dyn Error + Send + Sync>;
    type Hint = ();

    fn hint(&self, _: &Req) {}

    fn map_err(&self, error: E) -> Self::Error {
        error.into()
    }

    fn reject(&self, (): (), error: CallError, _: Duration) -> Result<Res, Self::Error> {
        Err(error.into())
    }
}

/// Rejects with the result of a closure. Created by
/// [`OffloadLayer::reject_with`](super::OffloadLayer::reject_with).
pub struct RejectFn<F>(Arc<F>);

impl<F> RejectFn<F> {
    pub(super) fn new(respond: F) -> Self {
        Self(Arc::new(respond))
    }
}

impl<Req, Res, E, F> Reject<Req, Res, E> for RejectFn<F>
where
    F: Fn(CallError) -> Result<Res, E> + Send + Sync,
{
    type Error = E;
    type Hint = ();

    fn hint(&self, _: &Req) {}

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, (): (), error: CallError, _: Duration) -> Result<Res, E> {
        (self.0)(error)
    }
}

impl<F> Clone for RejectFn<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F> fmt::Debug for RejectFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RejectFn")
    }
}
