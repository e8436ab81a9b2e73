use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{ResponseBody, guard::Guard};

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
        // Dropped after the future: what the handler holds is given back before anything runs that comes after the response.
        guard: Option<Guard>,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(inner: F, guard: Option<Guard>) -> Self {
        Self { inner, guard }
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
        let result = match this.guard {
            Some(guard) => ready!(guard.inside(|| this.inner.poll(cx))),
            None => ready!(this.inner.poll(cx)),
        };
        let mut guard = this.guard.take();
        Poll::Ready(match result {
            Ok(response) => {
                if let Some(guard) = &mut guard {
                    guard.responded(&response);
                }
                Ok(response.map(|body| ResponseBody::new(body, guard)))
            }
            Err(error) => {
                if let Some(guard) = &mut guard {
                    guard.failed(&error);
                }
                Err(error)
            }
        })
    }
}
