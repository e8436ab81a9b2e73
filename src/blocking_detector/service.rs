use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{
    ByPath, Naming, ResponseFuture,
    watch::{Settings, Watch},
};

/// Says when the inner service holds the thread for too long.
///
/// See the [module docs](self::super). Made by [`BlockingDetectorLayer`](super::BlockingDetectorLayer).
#[derive(Debug, Clone)]
pub struct BlockingDetector<S, N = ByPath> {
    inner: S,
    settings: Arc<Settings>,
    naming: N,
}

impl<S, N> BlockingDetector<S, N> {
    pub(super) fn new(inner: S, settings: Arc<Settings>, naming: N) -> Self {
        Self { inner, settings, naming }
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

impl<S, Req, N> Service<Req> for BlockingDetector<S, N>
where
    S: Service<Req>,
    N: Naming<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    /// Drives the inner service to ready.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let mut watch = Watch::new(self.settings.clone(), self.naming.name(&request));
        let future = watch.over(|| self.inner.call(request));
        ResponseFuture::new(future, watch)
    }
}
