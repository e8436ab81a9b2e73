use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::guard::BodyObserver;

pin_project! {
    /// The body of a response of [`AfterResponseService`](super::AfterResponseService).
    ///
    /// Forwards to the inner body and observes how it ends.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        // Declared after `inner`, so that what the body holds is released before anything runs
        // after the response.
        observer: Option<BodyObserver>,
    }
}

impl<B> ResponseBody<B> {
    /// Creates a body. Without an observer it only forwards to `inner`.
    pub(crate) fn new(inner: B, observer: Option<BodyObserver>) -> Self {
        Self { inner, observer }
    }

    /// Returns a reference to the inner body.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: fmt::Display,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let mut inner = this.inner;
        match this.observer {
            None => inner.poll_frame(cx),
            Some(BodyObserver::Owner(guard)) => {
                guard.on_poll();
                let frame = ready!(guard.run(|| inner.as_mut().poll_frame(cx)));
                guard.on_frame(frame.as_ref(), &*inner, cx);
                Poll::Ready(frame)
            }
            Some(BodyObserver::Attempt(attempt)) => {
                let frame = ready!(inner.poll_frame(cx));
                attempt.on_frame(frame.as_ref());
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_end_stream = self.inner.is_end_stream();
        if let (true, Some(BodyObserver::Owner(guard))) = (is_end_stream, &self.observer) {
            guard.on_end_stream();
        }
        is_end_stream
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default> Default for ResponseBody<B> {
    /// Creates a body that belongs to no request and is not observed.
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: From<bytes::Bytes>> From<bytes::Bytes> for ResponseBody<B> {
    /// Creates a body that belongs to no request and is not observed.
    fn from(bytes: bytes::Bytes) -> Self {
        Self::new(B::from(bytes), None)
    }
}
