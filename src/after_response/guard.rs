//! Observation of a response by the server's side: first of the handler's future, then of the body.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Waker},
};

use bytes::Buf;
use http::Response;
use http_body::{Body, Frame};

use super::{
    exchange::Exchange,
    progress::{Progress, RequestLine},
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
        let at = self.exchange.elapsed();
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

    /// Records that the body is polled for a frame. To be called before the poll, because the client
    /// may leave while the first frame is pending.
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
        // hyper may keep the body for as long as the client takes nothing of it.
        if progress.has_ended() && self.exchange.is_tracked() {
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
    Attempt(InnerAttempt),
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

    /// Records the response, and returns the guard for its body.
    pub(super) fn on_response<B: Body>(&mut self, response: &Response<B>) -> Option<Guard> {
        match std::mem::replace(self, Self::Done) {
            Self::Owner(mut guard) => {
                guard.on_response(response);
                Some(guard)
            }
            Self::Attempt(attempt) => {
                attempt.on_response(response);
                None
            }
            Self::Done => None,
        }
    }

    /// Records that the handler returned an error, and ends the observation.
    pub(super) fn on_error(&mut self, error: &impl fmt::Display) {
        if let Self::Owner(mut guard) = std::mem::replace(self, Self::Done) {
            guard.on_error(error);
        }
    }
}

/// One call of a layer that does not own the response.
///
/// An outer layer, such as a retry, may discard its response and send another. A task for
/// successful responses runs only if the attempt that registered it was successful too.
#[derive(Debug, Clone)]
pub(crate) enum InnerAttempt {
    First(Arc<Exchange>),
    Later(Arc<AttemptState>),
}

const TAKEN: u8 = 1;
const SUCCEEDED: u8 = 1 << 1;

/// Result of an attempt. Bits are set and never cleared.
#[derive(Debug, Default)]
pub(crate) struct AttemptState(AtomicU8);

impl InnerAttempt {
    pub(super) fn new(exchange: &Arc<Exchange>) -> Self {
        let is_first = exchange.first_attempt.0.fetch_or(TAKEN, Ordering::Relaxed) & TAKEN == 0;
        if is_first { Self::First(exchange.clone()) } else { Self::Later(Arc::default()) }
    }

    fn on_response<B>(&self, response: &Response<B>) {
        if response.status().as_u16() < 400 {
            self.state().0.fetch_or(SUCCEEDED, Ordering::Release);
        }
    }

    pub(super) fn is_success(&self) -> bool {
        self.state().0.load(Ordering::Acquire) & SUCCEEDED != 0
    }

    fn state(&self) -> &AttemptState {
        match self {
            Self::First(exchange) => &exchange.first_attempt,
            Self::Later(state) => state,
        }
    }
}
