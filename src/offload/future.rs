//! The two futures of a call: [`Work`] runs on the pool, [`ResponseFuture`] in the caller's task.

use std::{
    fmt,
    marker::PhantomData,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    adaptive::Probe,
    inspect::Inspect,
    reject::{Reject, Watch},
};
use crate::{
    panic::drop_payload,
    pool::{
        CallError,
        call::{CallFailure, JoinHandle},
    },
};

pin_project! {
    /// Response future of [`Offload`](super::Offload).
    ///
    /// # Panics
    ///
    /// Polling it resumes the panic of the work, unless the layer
    /// [catches panics](super::OffloadLayer::catch_panics).
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the call, unless the layer is
    /// [`detached`](super::OffloadLayer::detached). Work that has not started is dropped and never
    /// runs. Work that awaits is dropped on the pool. Work that is running can check
    /// [`cancelled`](crate::cancelled).
    #[must_use = "futures do nothing unless polled; dropping this one cancels the call"]
    pub struct ResponseFuture<F, Req, X, H>
    where
        F: Future,
    {
        #[pin]
        state: State<F>,
        fallback: Fallback<X, H>,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProjection]
    pub(super) enum State<F>
    where
        F: Future,
    {
        /// The request runs inline.
        Inline { #[pin] future: F },
        Waiting { admitted: Pin<Box<dyn Future<Output = Result<JoinHandle<F::Output>, Rejected>> + Send>> },
        Offloaded { handle: JoinHandle<F::Output> },
        Rejected { rejected: Rejected },
    }
}

/// A call that the pool did not run, or whose work panicked.
pub(super) struct Rejected {
    pub(super) error: CallError,
    /// The time that a new call is expected to wait.
    pub(super) expected_wait: Duration,
}

/// The answer to a call that fails with a [`CallError`].
pub(super) struct Fallback<X, H> {
    pub(super) reject: X,
    /// `None` after it was used.
    pub(super) hint: Option<H>,
    pub(super) catch_panics: bool,
}

impl<F: Future, Req, X, H> ResponseFuture<F, Req, X, H> {
    pub(super) fn new(state: State<F>, fallback: Fallback<X, H>) -> Self {
        Self { state, fallback, request: PhantomData }
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
        let Fallback { reject, hint, catch_panics } = this.fallback;
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Inline { future } => {
                    return Poll::Ready(ready!(future.poll(cx)).map_err(|error| reject.map_err(error)));
                }
                StateProjection::Waiting { admitted } => match ready!(admitted.as_mut().poll(cx)) {
                    Ok(handle) => State::Offloaded { handle },
                    Err(rejected) => State::Rejected { rejected },
                },
                StateProjection::Offloaded { handle } => match ready!(Pin::new(&mut *handle).poll(cx)) {
                    Ok(result) => return Poll::Ready(result.map_err(|error| reject.map_err(error))),
                    Err(CallFailure::Rejected(error)) => {
                        State::Rejected { rejected: Rejected { error, expected_wait: handle.expected_wait() } }
                    }
                    Err(CallFailure::Panicked(payload)) if *catch_panics => {
                        drop_payload(payload);
                        let expected_wait = handle.expected_wait();
                        State::Rejected { rejected: Rejected { error: CallError::Panicked, expected_wait } }
                    }
                    Err(CallFailure::Panicked(payload)) => resume_unwind(payload),
                },
                StateProjection::Rejected { rejected: Rejected { error, expected_wait } } => {
                    let hint = hint.take().expect("`ResponseFuture` polled after completion");
                    return Poll::Ready(reject.reject(hint, *error, *expected_wait));
                }
            };
            this.state.set(next);
        }
    }
}

impl<F: Future, Req, X, H> fmt::Debug for ResponseFuture<F, Req, X, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// The part of a call that runs on the pool: `call` of the inner service, the polls of its
    /// future, and the drop of either. All of them see the propagated values.
    pub(super) struct Work<S, Req, A>
    where
        S: Service<Req>,
        A: Inspect<Req>,
    {
        inspect: A,
        captured: A::Captured,
        #[pin]
        stage: Stage<S, Req>,
        // `Some` in a call that is watched and has not returned a response.
        watch: Option<Watch<S::Response>>,
        // `Some` in a call of an adaptive layer, until its first poll has ended.
        probe: Option<Probe>,
    }

    impl<S, Req, A> PinnedDrop for Work<S, Req, A>
    where
        S: Service<Req>,
        A: Inspect<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if !matches!(*this.stage, Stage::Done) {
                this.inspect.in_context(this.captured, &mut || this.stage.set(Stage::Done));
            }
        }
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, Req>
    where
        S: Service<Req>,
    {
        /// `None` only while `call` runs.
        Uncalled { call: Option<(S, Req)> },
        Called { #[pin] future: S::Future },
        Done,
    }
}

impl<S, Req, A> Work<S, Req, A>
where
    S: Service<Req>,
    A: Inspect<Req>,
{
    /// Creates the work of one call. `service` must have been polled ready.
    pub(super) fn new(
        service: S,
        request: Req,
        inspect: A,
        captured: A::Captured,
        watch: Option<Watch<S::Response>>,
        probe: Option<Probe>,
    ) -> Self {
        Self { inspect, captured, stage: Stage::Uncalled { call: Some((service, request)) }, watch, probe }
    }
}

impl<S, Req, A> Future for Work<S, Req, A>
where
    S: Service<Req>,
    A: Inspect<Req>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let probe = this.probe.take().map(Probe::start);
        let mut polled = None;
        this.inspect.in_context(this.captured, &mut || {
            if polled.is_none() {
                polled = Some(this.stage.as_mut().poll(cx));
            }
        });
        if let Some(probe) = probe {
            probe.finish(matches!(polled, Some(Poll::Ready(_))));
        }
        if let Some(Poll::Ready(result)) = &polled {
            if let (Ok(response), Some(watch)) = (result, this.watch.take()) {
                watch.respond(response);
            }
        }
        polled.expect("the scope closure given to `propagate` did not call its second argument")
    }
}

impl<S, Req> Stage<S, Req>
where
    S: Service<Req>,
{
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<S::Response, S::Error>> {
        loop {
            match self.as_mut().project() {
                StageProjection::Uncalled { call } => {
                    let (mut service, request) = call.take().expect("work polled again after `call` panicked");
                    let future = service.call(request);
                    drop(service); // before the first poll, since it may hold resources that its future waits for
                    self.set(Self::Called { future });
                }
                StageProjection::Called { future } => {
                    let result = ready!(future.poll(cx));
                    self.set(Self::Done);
                    return Poll::Ready(result);
                }
                StageProjection::Done => panic!("work polled after completion"),
            }
        }
    }
}
