//! Observation of a response by the server's side: first of the handler's future, then of the body.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use bytes::Buf;
use http::Response;
use http_body::{Body, Frame};

use super::{
    AfterResponse,
    exchange::Exchange,
    progress::{Progress, RequestLine, success_of_head, success_of_trailers},
};
use crate::panic::ignore_panic;

/// Observes the response that is sent, and finishes its exchange when it is dropped.
///
/// It is a field of the handler's [`ResponseFuture`](super::ResponseFuture) and then of the
/// [`ResponseBody`](super::ResponseBody). In both it is declared after the user's value, so that
/// everything the value holds is released before work runs after the response.
#[derive(Debug)]
pub(crate) struct Guard {
    exchange: Arc<Exchange>,
    /// `None` once it was handed to the exchange. Owned, so that frames pass without a lock.
    progress: Option<Progress>,
    /// `true` while user code runs under this guard. If the guard is dropped in that state, the
    /// user code has panicked.
    is_inside: bool,
    /// `true` once `is_end_stream` has returned `true` to the HTTP implementation. That answer is
    /// final, even if a body that another task fills returns `false` later.
    reported_end: AtomicBool,
    /// The connection's task, to be woken if the response ends without anything left to write.
    /// Otherwise hyper might not flush until the next event on the connection.
    waker: Option<Waker>,
}

impl Guard {
    pub(crate) fn new(exchange: Arc<Exchange>, request: RequestLine) -> Self {
        Self {
            exchange,
            progress: Some(Progress::new(request)),
            is_inside: false,
            reported_end: AtomicBool::new(false),
            waker: None,
        }
    }

    /// Runs user code that produces the response or a part of it.
    pub(crate) fn run<T>(&mut self, user_code: impl FnOnce() -> T) -> T {
        self.is_inside = true;
        let value = user_code();
        self.is_inside = false;
        value
    }

    /// Records the head of the response.
    pub(super) fn on_response<B: Body>(&mut self, response: &Response<B>) {
        let at = if self.exchange.is_unobserved() { Duration::ZERO } else { self.exchange.elapsed() };
        let (status, headers, body) = (response.status(), response.headers(), response.body());
        let (exact, is_end_stream) = self.run(|| (body.size_hint().exact(), body.is_end_stream()));
        let Some(progress) = &mut self.progress else { return };
        progress.respond(status, headers, exact, is_end_stream, at);
        if self.exchange.has_registrations() {
            progress.keep_headers(headers);
        }
        if progress.has_head() {
            self.exchange.set_head(progress.request().opens_tunnel(status));
        }
    }

    /// Records that the handler returned an error instead of a response.
    pub(super) fn on_error(&mut self, error: &impl fmt::Display) {
        let error = self.text(error);
        if let Some(progress) = &mut self.progress {
            progress.fail(error);
        }
    }

    /// Records that the body's `is_end_stream` returned `true`.
    pub(super) fn on_end_stream(&self) {
        self.reported_end.store(true, Ordering::Relaxed);
    }

    /// Records that the body is polled for a frame. To be called before the poll, because the
    /// client may leave while the first frame is pending.
    pub(super) fn on_poll(&mut self) {
        if let Some(progress) = &mut self.progress {
            progress.set_polled();
        }
    }

    /// Records what `poll_frame` returned.
    pub(super) fn on_frame<B: Body<Error: fmt::Display>>(
        &mut self,
        frame: Option<&Result<Frame<B::Data>, B::Error>>,
        body: &B,
        cx: &Context<'_>,
    ) {
        let error = frame.and_then(|frame| frame.as_ref().err()).map(|error| self.text(error));
        let is_end_stream = matches!(frame, Some(Ok(_))) && self.run(|| body.is_end_stream());
        let Some(progress) = &mut self.progress else { return };
        match frame {
            None => progress.end_body(),
            Some(Err(_)) => progress.fail(error.flatten()),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    progress.add_data(data.remaining() as u64);
                } else if let Some(trailers) = frame.trailers_ref() {
                    progress.set_trailers(trailers);
                }
                if is_end_stream {
                    progress.end_body();
                }
            }
        }
        if progress.may_end_silently() && self.exchange.is_tracked() {
            match &mut self.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => self.waker = Some(cx.waker().clone()),
            }
        }
        // On HTTP/2 hyper may keep the body for as long as the client takes nothing of it. On
        // HTTP/1 it drops the body at once (`poll_write` in `hyper/proto/h1/dispatch.rs`).
        if progress.has_ended() && progress.request().is_multiplexed() && self.exchange.is_tracked() {
            if let Some(progress) = self.progress.take() {
                self.exchange.end_body(progress);
            }
        }
    }

    /// Formats an error, unless no hook or task could read the text.
    fn text(&self, error: &impl fmt::Display) -> Option<String> {
        let mut text = None;
        if self.exchange.has_registrations() {
            ignore_panic(|| text = Some(error.to_string()));
        }
        text
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut progress = self.progress.take();
        if let Some(progress) = &mut progress {
            if *self.reported_end.get_mut() {
                progress.end_body();
            }
            if self.is_inside {
                progress.fail(Some("panicked".to_owned()));
            }
        }
        self.exchange.finish(progress);
        if let Some(waker) = self.waker.take() {
            ignore_panic(|| waker.wake());
        }
    }
}

/// Observes a handler's future.
#[derive(Debug)]
pub(crate) enum Observer {
    /// This layer or connection is the outermost, so the handler's response is sent.
    Owner(Guard),
    /// An outer layer or connection owns the response.
    Attempt(AttemptGuard),
    /// The future has returned. The guard has moved into the body.
    Done,
}

impl Observer {
    /// Runs user code that produces the response.
    pub(crate) fn run<T>(&mut self, user_code: impl FnOnce() -> T) -> T {
        match self {
            Self::Owner(guard) => guard.run(user_code),
            Self::Attempt(_) | Self::Done => user_code(),
        }
    }

    /// Records the response, and returns the observer of its body.
    pub(super) fn on_response<B: Body>(&mut self, response: &Response<B>) -> Option<BodyObserver> {
        match std::mem::replace(self, Self::Done) {
            Self::Owner(mut guard) => {
                guard.on_response(response);
                Some(BodyObserver::Owner(guard))
            }
            Self::Attempt(attempt) => attempt.on_response(response).map(BodyObserver::Attempt),
            Self::Done => None,
        }
    }

    /// Records that the handler returned an error, and ends the observation.
    pub(super) fn on_error(&mut self, error: &impl fmt::Display) {
        match std::mem::replace(self, Self::Done) {
            Self::Owner(mut guard) => guard.on_error(error),
            Self::Attempt(attempt) => attempt.on_error(),
            Self::Done => {}
        }
    }
}

/// Observes a response's body.
#[derive(Debug)]
pub(crate) enum BodyObserver {
    Owner(Guard),
    /// The trailers decide whether the attempt is successful.
    Attempt(AttemptGuard),
}

/// One call of a layer that does not own the response.
///
/// An outer layer, such as a retry, may discard its response and send another. A task with the
/// default condition runs if the attempt that registered it is successful.
#[derive(Debug, Clone)]
pub(crate) enum InnerAttempt {
    /// Its state is [`Exchange::first_attempt`].
    First,
    Later(Arc<AttemptState>),
}

impl InnerAttempt {
    fn new(exchange: &Exchange) -> Self {
        let is_first = exchange.first_attempt.0.fetch_or(TAKEN, Ordering::Relaxed) & TAKEN == 0;
        if is_first { Self::First } else { Self::Later(Arc::default()) }
    }

    /// Returns the state of this attempt, which belongs to `exchange`.
    pub(super) fn state<'a>(&'a self, exchange: &'a Exchange) -> &'a AttemptState {
        match self {
            Self::First => &exchange.first_attempt,
            Self::Later(state) => state,
        }
    }
}

/// The attempt is in use. Only for the attempt that is stored in its exchange.
const TAKEN: u8 = 1;
/// The handler's future has returned or was dropped. [`SUCCEEDED`] is set together with it.
const LEFT: u8 = 1 << 1;
const SUCCEEDED: u8 = 1 << 2;
/// The handler runs on a pool, where it may end well after its future was dropped. Cleared if the
/// call on the pool ends without a response.
const OFFLOADED: u8 = 1 << 3;
/// The call on the pool has returned a response. [`ENDED_WELL`] is set together with it.
const ENDED: u8 = 1 << 4;
const ENDED_WELL: u8 = 1 << 5;

/// Result of a handler's call.
///
/// If the handler runs on a pool, its response there decides. It may differ from what the layer
/// sees, because the client may leave, or a timeout respond, while the handler runs. Otherwise
/// the response that the layer sees decides.
#[derive(Debug, Default)]
pub(crate) struct AttemptState(AtomicU8);

impl AttemptState {
    /// Returns `true` if it is known whether the attempt is successful.
    pub(super) fn is_decided(&self) -> bool {
        let bits = self.0.load(Ordering::Acquire);
        bits & if is_offloaded(bits) { ENDED } else { LEFT } != 0
    }

    pub(super) fn is_success(&self) -> bool {
        let bits = self.0.load(Ordering::Acquire);
        bits & if is_offloaded(bits) { ENDED_WELL } else { SUCCEEDED } != 0
    }

    /// Returns the result of the call on a pool, or `None` if there was none. While that call runs,
    /// the attempt is not decided.
    pub(super) fn offloaded(&self) -> Option<&Self> {
        is_offloaded(self.0.load(Ordering::Acquire)).then_some(self)
    }
}

fn is_offloaded(bits: u8) -> bool {
    bits & OFFLOADED != 0
}

/// Decides an attempt: by the response of its handler, or when the guard is dropped.
#[derive(Debug)]
pub(crate) struct AttemptGuard {
    /// `None` once the attempt is decided.
    undecided: Option<(Arc<Exchange>, InnerAttempt)>,
}

impl AttemptGuard {
    /// Begins an attempt. Also returns the attempt itself, for its handle.
    pub(super) fn begin(exchange: &Arc<Exchange>) -> (Self, InnerAttempt) {
        let attempt = InnerAttempt::new(exchange);
        (Self { undecided: Some((exchange.clone(), attempt.clone())) }, attempt)
    }

    /// Decides the attempt, unless the trailers do. Returns `self` in that case.
    fn on_response<B>(mut self, response: &Response<B>) -> Option<Self> {
        match success_of_head(response.status(), response.headers()) {
            Some(is_success) => {
                self.decide(is_success);
                None
            }
            None => Some(self),
        }
    }

    /// Decides the attempt if `frame` is the trailers.
    pub(super) fn on_frame<D, E>(&mut self, frame: Option<&Result<Frame<D>, E>>) {
        if let Some(trailers) = frame.and_then(|frame| frame.as_ref().ok()?.trailers_ref()) {
            self.decide(success_of_trailers(trailers));
        }
    }

    fn on_error(mut self) {
        self.decide(false);
    }

    fn decide(&mut self, is_success: bool) {
        if let Some((exchange, attempt)) = self.undecided.take() {
            let bits = if is_success { LEFT | SUCCEEDED } else { LEFT };
            attempt.state(&exchange).0.fetch_or(bits, Ordering::Release);
            exchange.on_decided();
        }
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        self.decide(false);
    }
}

/// A handler's call on a pool.
#[derive(Debug)]
pub(crate) struct OffloadedCall {
    exchange: Arc<Exchange>,
    /// `None` if the layer of the handle owns the response.
    attempt: Option<InnerAttempt>,
    /// `None` if the call has not returned a response, or its trailers decide.
    is_success: Option<bool>,
}

impl OffloadedCall {
    /// Begins a call of the handler to which `after` was given. An earlier call that has ended, for
    /// example of a retry, no longer counts.
    pub(crate) fn begin(after: &AfterResponse) -> Self {
        let call = Self { exchange: after.exchange().clone(), attempt: after.attempt(), is_success: None };
        call.update(|bits| Some(bits & !(ENDED | ENDED_WELL) | OFFLOADED));
        call
    }

    /// Ends the call with a response.
    pub(crate) fn respond<B>(mut self, response: &Response<B>) {
        self.is_success = success_of_head(response.status(), response.headers());
    }

    fn update(&self, update: impl FnMut(u8) -> Option<u8>) {
        let exchange = &self.exchange;
        let state = self.attempt.as_ref().map_or(&exchange.own_call, |attempt| attempt.state(exchange));
        let _ = state.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }
}

impl Drop for OffloadedCall {
    fn drop(&mut self) {
        // A nested call has decided before: it is closer to the handler.
        self.update(|bits| {
            (bits & ENDED == 0).then_some(match self.is_success {
                Some(true) => bits | ENDED | ENDED_WELL,
                Some(false) => bits | ENDED,
                None => bits & !OFFLOADED,
            })
        });
        self.exchange.on_decided();
    }
}
