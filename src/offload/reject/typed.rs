use std::{error::Error, time::Duration};

use super::Reject;
use crate::pool::CallError;

/// Answers with an error, on any tower stack.
///
/// The service's error becomes `Box<dyn Error + Send + Sync>`, as with tower's own `LoadShed`, `Timeout` and `Buffer`; a
/// rejection in it is found with `error.downcast_ref::<CallError>()`.
///
/// ```
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// use tower_offload::{OffloadLayer, CallError, ThreadPool, offload::Typed, pool::Pool};
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = ThreadPool::cpu();
/// let mut service = ServiceBuilder::new()
///     .layer(OffloadLayer::new(pool.clone()).reject(Typed))
///     .service(service_fn(async |number: u32| Ok::<_, std::convert::Infallible>(number + 1)));
/// assert_eq!(service.ready().await.unwrap().call(1).await.unwrap(), 2);
///
/// pool.admission().close();
/// let error = service.ready().await.unwrap().call(1).await.unwrap_err();
/// assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Typed;

impl<Req, Res, E> Reject<Req, Res, E> for Typed
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Error = Box<dyn Error + Send + Sync>;
    type Hint = ();

    fn hint(&self, _: &Req) {}

    fn map_err(&self, error: E) -> Self::Error {
        error.into()
    }

    fn reject(&self, (): (), rejection: CallError, _: Duration) -> Result<Res, Self::Error> {
        Err(rejection.into())
    }
}
