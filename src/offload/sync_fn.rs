use std::{
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use tower_service::Service;

/// A service from a sync function: what [`tower::service_fn`] is for async ones. Always ready.
///
/// On its own it blocks whoever calls it; it is made to stand behind an [`OffloadLayer`](super::OffloadLayer).
///
/// ```
/// use tower::{Service, ServiceBuilder, ServiceExt};
/// use tower_offload::{OffloadLayer, ThreadPool, offload::{Typed, sync_fn}};
///
/// # #[tokio::main]
/// # async fn main() {
/// let mut parse = ServiceBuilder::new()
///     .layer(OffloadLayer::new(ThreadPool::cpu()).reject(Typed))
///     .service(sync_fn(|text: String| text.parse::<i32>()));
/// assert_eq!(parse.ready().await.unwrap().call("42".to_owned()).await.unwrap(), 42);
/// # }
/// ```
///
/// [`tower::service_fn`]: https://docs.rs/tower/latest/tower/fn.service_fn.html
pub fn sync_fn<F>(function: F) -> SyncFn<F> {
    SyncFn { function }
}

/// Made by [`sync_fn`].
#[derive(Clone, Copy)]
pub struct SyncFn<F> {
    function: F,
}

impl<F, Req, Res, E> Service<Req> for SyncFn<F>
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

impl<F> fmt::Debug for SyncFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncFn").field("function", &std::any::type_name::<F>()).finish()
    }
}
