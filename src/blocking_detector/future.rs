use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::watch::Watch;

pin_project! {
    /// Response future of [`BlockingDetector`](super::BlockingDetector).
    ///
    /// # Panics
    ///
    /// Panics if the inner future panics. A poll that panics is measured like any other.
    ///
    /// # Cancel safety
    ///
    /// Equal to that of the inner future.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        future: F,
        watch: Watch,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(future: F, watch: Watch) -> Self {
        Self { future, watch }
    }
}

impl<F: Future> Future for ResponseFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.watch.measure(|| this.future.poll(cx))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
