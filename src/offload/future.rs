use std::{
    fmt,
    marker::PhantomData,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use super::Reject;
use crate::panic::drop_payload;
use crate::pool::{
    CallError, Pool,
    call::{CallFailure, JoinHandle},
};

pin_project! {
    /// The future of [`Offload`](super::Offload).
    ///
    /// # Panics
    ///
    /// Resumes the panic of the work, unless the layer was told to
    /// [`catch_panics`](super::OffloadLayer::catch_panics).
    ///
    /// # Cancel safety
    ///
    /// Dropped early, work that has not started is dropped too and never runs, work that awaits is dropped on the pool, and work that runs
    /// can ask [`cancelled`](super::cancelled); unless the layer is [`detached`](super::OffloadLayer::detached).
    pub struct ResponseFuture<F, Req, X, H>
    where
        F: Future,
    {
        #[pin]
        state: State<F>,
        answer: Answer<X, H>,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProjection]
    pub(super) enum State<F>
    where
        F: Future,
    {
        /// The filter let it through.
        Direct { #[pin] future: F },
        Offloaded { handle: JoinHandle<F::Output> },
        Rejected { rejection: CallError },
        Waiting { admitted: Pin<Box<dyn Future<Output = Result<JoinHandle<F::Output>, CallError>> + Send>> },
    }
}

/// How to answer if the pool does not.
pub(super) struct Answer<X, H> {
    pub(super) reject: X,
    /// `None` once it was used.
    pub(super) hint: Option<H>,
    pub(super) pool: Arc<dyn Pool>,
    pub(super) catch_panics: bool,
}

impl<F: Future, Req, X, H> ResponseFuture<F, Req, X, H> {
    pub(super) fn new(state: State<F>, answer: Answer<X, H>) -> Self {
        Self { state, answer, request: PhantomData }
    }
}

impl<F, Req, Res, E, X> Future for ResponseFuture<F, Req, X, X::Hint>
where
    F: Future<Output = Result<Res, E>>,
    X: Reject<Req, Res, E>,
{
    type Output = Result<Res, X::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProjection::Direct { future } => {
                    return Poll::Ready(ready!(future.poll(cx)).map_err(|error| this.answer.reject.map_err(error)));
                }
                StateProjection::Offloaded { handle } => match ready!(Pin::new(handle).poll(cx)) {
                    Ok(result) => return Poll::Ready(result.map_err(|error| this.answer.reject.map_err(error))),
                    Err(CallFailure::Rejected(rejection)) => this.state.set(State::Rejected { rejection }),
                    Err(CallFailure::Panicked(payload)) if this.answer.catch_panics => {
                        drop_payload(payload);
                        this.state.set(State::Rejected { rejection: CallError::Panicked });
                    }
                    Err(CallFailure::Panicked(payload)) => resume_unwind(payload),
                },
                StateProjection::Rejected { rejection } => {
                    let Answer { reject, hint, pool, .. } = this.answer;
                    let hint = hint.take().expect("the future of an offloaded call is not polled after it ended");
                    return Poll::Ready(reject.reject(hint, *rejection, pool.expected_wait()));
                }
                StateProjection::Waiting { admitted } => match ready!(admitted.as_mut().poll(cx)) {
                    Ok(handle) => this.state.set(State::Offloaded { handle }),
                    Err(rejection) => this.state.set(State::Rejected { rejection }),
                },
            }
        }
    }
}

impl<F: Future, Req, X, H> fmt::Debug for ResponseFuture<F, Req, X, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
