use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{ResponseBody, observer::Observer};

pin_project! {
    /// The future of [`AfterResponseService`](super::AfterResponseService).
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the outcome is [`NoResponse`](super::End::NoResponse).
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        // Dropped after the future: what a handler holds that is dropped early is given back before anything runs that comes after
        // the response.
        observer: Observer,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, observer: Observer) -> Self {
        Self { inner, observer }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: fmt::Display,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let observer = this.observer;
        Poll::Ready(match ready!(observer.inside(|| this.inner.poll(cx))) {
            Ok(response) => {
                let guard = observer.responded(&response);
                Ok(response.map(|body| ResponseBody::new(body, guard)))
            }
            Err(error) => {
                observer.failed(&error);
                Err(error)
            }
        })
    }
}
