use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Waker},
};

use http::Response;
use http_body::{Body, Frame};

use super::{
    exchange::Exchange,
    progress::{Progress, RequestLine},
};
use crate::pool::call::contained;

/// Held by whoever holds the response: first the handler's future, then the body. When it is dropped, the response's own side
/// has said all.
#[derive(Debug)]
pub(crate) struct Guard {
    exchange: Arc<Exchange>,
    /// `None` once it was handed to the exchange.
    progress: Option<Progress>,
    /// Set while foreign code runs under this guard. If it is dropped then, that code panicked.
    is_inside: bool,
    /// Set when whoever holds the body was told that it is at its end. Asked again it may say something else, as a body does that
    /// another task fills; what counts is what was said.
    said_end: AtomicBool,
    /// Of the connection's task, for an end that would not make it flush.
    waker: Option<Waker>,
}

impl Guard {
    pub(crate) fn new(exchange: Arc<Exchange>, request: RequestLine) -> Self {
        Self {
            exchange,
            progress: Some(Progress::new(request)),
            is_inside: false,
            said_end: AtomicBool::new(false),
            waker: None,
        }
    }

    /// Runs foreign code that makes the response or a part of it.
    pub(crate) fn inside<T>(&mut self, foreign: impl FnOnce() -> T) -> T {
        self.is_inside = true;
        let value = foreign();
        self.is_inside = false;
        value
    }

    /// The handler responded.
    pub(super) fn responded<B: Body>(&mut self, response: &Response<B>) {
        let at = self.exchange.elapsed();
        let (status, headers, body) = (response.status(), response.headers(), response.body());
        let (exact, is_end_stream) = self.inside(|| (body.size_hint().exact(), body.is_end_stream()));
        let Some(progress) = &mut self.progress else { return };
        progress.responded(status, headers, exact, is_end_stream, at);
        if self.exchange.is_wanted() {
            progress.keep_headers(headers);
        }
        if progress.has_head() {
            self.exchange.responded();
        }
        if progress.request().opens_tunnel(status) {
            self.exchange.opens_tunnel();
        }
    }

    /// The handler failed, and there will be no response.
    pub(super) fn failed(&mut self, error: &impl fmt::Display) {
        let error = self.text(error);
        if let Some(progress) = &mut self.progress {
            progress.failed(error);
        }
    }

    /// The body was asked whether it is at its end, and said so.
    pub(super) fn says_end(&self) {
        self.said_end.store(true, Relaxed);
    }

    /// The body gave what it was asked for.
    pub(super) fn frame<B: Body<Error: fmt::Display>>(
        &mut self,
        frame: Option<&Result<Frame<B::Data>, B::Error>>,
        body: &B,
        cx: &Context<'_>,
    ) {
        let error = frame.and_then(|frame| frame.as_ref().err()).map(|error| self.text(error));
        let is_end_stream = matches!(frame, Some(Ok(_))) && self.inside(|| body.is_end_stream());
        let Some(progress) = &mut self.progress else { return };
        progress.polled();
        match frame {
            None => progress.ended(),
            Some(Err(_)) => progress.failed(error.flatten()),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    progress.data(bytes::Buf::remaining(data) as u64);
                } else if let Some(trailers) = frame.trailers_ref() {
                    progress.trailers(trailers);
                }
                if is_end_stream {
                    progress.ended();
                }
            }
        }
        if progress.may_end_silently() && self.exchange.is_tracked() {
            match &mut self.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => self.waker = Some(cx.waker().clone()),
            }
        }
    }

    /// Formats only for whoever wants to know.
    fn text(&self, error: &impl fmt::Display) -> Option<String> {
        let mut text = None;
        if self.exchange.is_wanted() {
            contained(|| text = Some(error.to_string()));
        }
        text
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mut progress) = self.progress.take() else { return };
        if *self.said_end.get_mut() {
            progress.ended();
        }
        if self.is_inside {
            progress.failed(Some("panicked".to_owned()));
        }
        self.exchange.released(progress);
        if let Some(waker) = self.waker.take() {
            contained(|| waker.wake());
        }
    }
}
