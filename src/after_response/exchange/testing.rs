//! Test double of a response: it has neither a handler nor a body.

use std::sync::Arc;

use http::{HeaderMap, Request, StatusCode, Version};
use tokio::time::Instant;

use super::{Exchange, FlushOutcome, FlushWaiter, Progress, RequestLine};
use crate::{
    after_response::{AfterResponse, Outcome},
    background::Background,
};

/// The server's side of a tracked exchange.
#[derive(Debug, Clone)]
pub(crate) struct TestResponse {
    exchange: Arc<Exchange>,
    /// Like a handle: without one, an exchange that has no registration does not settle.
    #[expect(dead_code, reason = "it is a reference that counts")]
    handle: Arc<Exchange>,
    line: RequestLine,
}

impl TestResponse {
    pub(crate) fn new(version: Version) -> (Self, FlushWaiter) {
        let mut request = Request::new(());
        *request.version_mut() = version;
        let line = RequestLine::new(&request);
        let (exchange, waiter) = Exchange::tracked(line, Instant::now(), true);
        (Self { handle: exchange.clone(), exchange, line }, waiter)
    }

    /// Returns the handle that a layer with this background gives to the handler.
    pub(crate) fn handle(&self, background: &Background) -> AfterResponse {
        AfterResponse::new(self.exchange.clone(), background.clone())
    }

    /// Ends the body as complete.
    pub(crate) fn end(&self) {
        let mut progress = Progress::new(self.line);
        progress.respond(StatusCode::OK, &HeaderMap::new(), None, true, self.exchange.elapsed());
        self.exchange.finish(Some(progress));
    }

    /// Ends the body as complete, and keeps it.
    pub(crate) fn end_and_keep(&self) {
        let mut progress = Progress::new(self.line);
        progress.respond(StatusCode::OK, &HeaderMap::new(), None, true, self.exchange.elapsed());
        self.exchange.end_body(progress);
    }

    /// Drops the body after its end.
    pub(crate) fn drop_ended(&self) {
        self.exchange.finish(None);
    }

    /// Returns how the response ended, if that is known.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.exchange.state.is_settled().then(|| self.exchange.outcome())
    }

    /// Drops the handler's future before it has returned a response.
    pub(crate) fn abandon(&self) {
        self.exchange.finish(Some(Progress::new(self.line)));
    }

    pub(crate) fn set_head(&self, opens_tunnel: bool) {
        self.exchange.set_head(opens_tunnel);
    }

    /// Keeps `value` alive as long as the exchange, like a hook that captured it.
    pub(crate) fn keep(&self, value: impl Send + 'static) {
        let hook = super::Hook::new(move |_: &Outcome| drop(value));
        super::lock(&self.exchange.pending).push_hook(hook);
    }

    /// Returns the outcome that the connection reported.
    pub(crate) fn flush_outcome(&self) -> Option<FlushOutcome> {
        self.exchange.flush_outcome()
    }
}
