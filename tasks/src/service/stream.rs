use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};

use super::{
    config::Config,
    milestone::{Milestone, Place},
    source::{Changes, StreamsEnd},
};

/// The events of one task, up to its final state. Nothing is done unless somebody reads, and no more is held than what the next read gets:
/// a client that never reads costs its place and a few kilobytes.
pub(super) struct EventStream {
    text: String,
    told: Option<Place>,
    /// `None` once there is nothing more to come.
    next: Option<Next>,
    keep_alive: Duration,
    silence: Pin<Box<Sleep>>,
    streams_end: StreamsEnd,
    _permit: OwnedSemaphorePermit,
}

/// Waits for a change; `None` if there will be none.
type Next = Pin<Box<dyn Future<Output = Option<Box<dyn Changes>>> + Send>>;

/// A client that lost the connection comes back after a second, instead of what its browser thinks good.
const RETRY: &str = "retry: 1000\n\n";
/// For people who look at the stream.
const FAREWELL: &str = ": to be continued by another process\n\n";

impl EventStream {
    pub(super) fn new(
        changes: Box<dyn Changes>,
        told: Option<Place>,
        config: &Config,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let (keep_alive, streams_end) = (config.keep_alive, config.source.streams_end());
        let silence = Box::pin(sleep(keep_alive));
        let text = RETRY.to_owned();
        let mut stream = Self { text, told, next: None, keep_alive, silence, streams_end, _permit: permit };
        stream.tell(changes);
        stream
    }

    fn tell(&mut self, mut changes: Box<dyn Changes>) {
        for milestone in Milestone::after(self.told, changes.record()) {
            milestone.write(&mut self.text);
            self.told = Some(milestone.place);
        }
        if !changes.record().state.is_final() {
            // an error ends the stream: the client comes back and goes on behind what it was told
            self.next = Some(Box::pin(async move { matches!(changes.changed().await, Ok(true)).then_some(changes) }));
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if !self.text.is_empty() {
                self.silence.as_mut().reset(Instant::now() + self.keep_alive);
                return Poll::Ready(Some(Bytes::from(std::mem::take(&mut self.text))));
            }
            let Some(next) = &mut self.next else { return Poll::Ready(None) };
            match next.as_mut().poll(cx) {
                Poll::Ready(changes) => {
                    self.next = None;
                    if let Some(changes) = changes {
                        self.tell(changes);
                    }
                }
                Poll::Pending if self.streams_end.as_mut().poll(cx).is_ready() => {
                    self.next = None;
                    self.text.push_str(FAREWELL);
                }
                Poll::Pending => {
                    std::task::ready!(self.silence.as_mut().poll(cx));
                    self.text.push_str(": keep-alive\n\n");
                }
            }
        }
    }
}
