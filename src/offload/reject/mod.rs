//! How a refused call is answered.

mod http;
mod problem;
mod typed;
mod with;

use std::time::Duration;

use crate::pool::CallError;

pub use self::{
    http::{Http, Protocol},
    problem::Problem,
    typed::Typed,
    with::With,
};

/// How a call that the pool did not carry out is answered: with a response, or with an error.
///
/// [`Http`] is the default and serves every HTTP stack; [`Problem`] adds a body, [`Typed`] is for everything that is not
/// HTTP, and [`OffloadLayer::reject_with`](super::OffloadLayer::reject_with) takes a closure.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer for a service with request `{Req}`, response `{Res}` and error `{E}`",
    note = "the default `Http` needs an `http::Request`, and an `http::Response<B>` where `B: Default`",
    note = "`Problem` needs `B: From<bytes::Bytes>` as well; `Typed` needs the error to be `Into<Box<dyn Error + Send + Sync>>`",
    note = "use `.reject(Typed)` or `.reject_with(|rejection| ..)` on the layer"
)]
pub trait Reject<Req, Res, E>: Clone + Send + Sync + 'static {
    /// The error of the whole service.
    type Error;
    /// What the answer depends on and is gone with the request.
    type Hint: Send + 'static;

    /// Reads the hint before the request goes to the pool.
    fn hint(&self, request: &Req) -> Self::Hint;

    /// Turns an error of the inner service into one of the whole service.
    fn map_err(&self, error: E) -> Self::Error;

    /// Answers. `retry_after` is how long a call has to expect to wait:
    /// [`Pool::expected_wait`](crate::pool::Pool::expected_wait).
    fn reject(&self, hint: Self::Hint, rejection: CallError, retry_after: Duration) -> Result<Res, Self::Error>;
}
