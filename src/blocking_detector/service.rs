use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{
    future::ResponseFuture,
    naming::{ByPath, Naming},
    watch::{Settings, Watch},
};

/// Reports when the inner service blocks the thread.
///
/// Created by [`BlockingDetectorLayer`](super::BlockingDetectorLayer). See the [module
/// docs](self::super).
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

impl<S, Req, N> Service<Req> for BlockingDetector<S, N>
where
    S: Service<Req>,
    N: Naming<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    /// Polls the inner service.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let mut watch = Watch::new(self.settings.clone(), self.naming.name(&request));
        let future = watch.measure(|| self.inner.call(request));
        ResponseFuture::new(future, watch)
    }
}
