use std::{
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use tower_service::Service;

/// Creates a service from a blocking function, like [`tower::service_fn`] from an async one. It is
/// always ready.
///
/// The function runs in the caller's task and blocks it, so put the service behind an
/// [`OffloadLayer`](super::OffloadLayer).
///
/// ```
/// use tower::{Service, ServiceBuilder, ServiceExt};
/// use tower_offload::{OffloadLayer, ThreadPool, offload::{RejectWithError, service_fn_blocking}};
///
/// # #[tokio::main]
/// # async fn main() {
/// let mut parse = ServiceBuilder::new()
///     .layer(OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError))
///     .service(service_fn_blocking(|text: String| text.parse::<i32>()));
/// assert_eq!(parse.ready().await.unwrap().call("42".to_owned()).await.unwrap(), 42);
/// # }
/// ```
///
/// [`tower::service_fn`]: https://docs.rs/tower/latest/tower/fn.service_fn.html
pub fn service_fn_blocking<F>(function: F) -> ServiceFnBlocking<F> {
    ServiceFnBlocking { function }
}

/// A [`Service`] implemented by a blocking function. Created by [`service_fn_blocking`].
#[derive(Clone, Copy)]
pub struct ServiceFnBlocking<F> {
    function: F,
}

impl<F, Req, Res, E> Service<Req> for ServiceFnBlocking<F>
where
    F: FnMut(Req) -> Result<Res, E>,
{
    type Response = Res;
    type Error = E;
    type Future = Ready<Result<Res, E>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ready((self.function)(request))
    }
}

impl<F> fmt::Debug for ServiceFnBlocking<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceFnBlocking").field("function", &std::any::type_name::<F>()).finish()
    }
}
