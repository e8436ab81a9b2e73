//! Events of a task, as server-sent events
//! ([HTML, section 9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html)).

use std::{
    cmp::Ordering,
    fmt,
    future::poll_fn,
    num::ParseIntError,
    pin::Pin,
    str::FromStr,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::unconstrained,
    time::{Sleep, sleep},
};

use super::source::{Changes, StreamsEnded};
use crate::{Record, Status, TaskState};

/// The `id` of an event. Ids are ordered like the events of a task, so a client that reconnects
/// with the id of its last event gets the later ones. Only an attempt that is taken back, because
/// it does not count, makes them smaller.
///
/// The events of an attempt after its start are in the order of their versions, not of their
/// phases: a job that has finished and is retried is queued, and can finish again, in the same
/// attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventId {
    attempt: u32,
    phase: u8,
    /// The version of the record from phase `PROGRESS` on. Before, it is 0: those events are
    /// derived from later records too.
    version: u64,
}

impl Ord for EventId {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |id: &Self| (id.attempt, id.phase.min(PROGRESS), id.version, id.phase);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for EventId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

const QUEUED: u8 = 0;
const STARTED: u8 = 1;
const PROGRESS: u8 = 2;
const REQUEUED: u8 = 3;
const FINISHED: u8 = 4;

impl EventId {
    /// Returns the id of the start of an attempt, or `None` for 0: no attempt was started.
    fn of_start(attempt: u32) -> Option<Self> {
        (attempt > 0).then_some(Self { attempt, phase: STARTED, version: 0 })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.attempt, self.phase, self.version)
    }
}

impl FromStr for EventId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().unwrap_or_default();
        Ok(Self { attempt: part().parse()?, phase: part().parse()?, version: part().parse()? })
    }
}

/// An event, with the status that the task had then.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) id: EventId,
    pub(super) name: &'static str,
    pub(super) status: Status,
}

impl Event {
    /// Returns the events after `last` that can be derived from a record, in order.
    ///
    /// The record has only the latest progress, so earlier progress events are omitted.
    ///
    /// An attempt that does not count is taken back. If the client has seen it, events of the
    /// attempts before it are later than that.
    pub(super) fn after(last: Option<EventId>, record: &Record) -> Vec<Self> {
        let last = match last {
            Some(last) if last.attempt > record.attempt => EventId::of_start(record.attempt),
            last => last,
        };
        let all = [queued(record), started(record), progress(record), requeued(record), finished(record)];
        all.into_iter().flatten().filter(|event| last.is_none_or(|last| event.id > last)).collect()
    }

    /// Appends the event in wire format. The JSON may contain line breaks between its tokens, and
    /// each line needs its own `data` field.
    pub(super) fn write(&self, text: &mut String) {
        let data = serde_json::to_string(&self.status).unwrap_or_default();
        *text += &format!("id: {}\nevent: {}\n", self.id, self.name);
        for line in data.split(['\n', '\r']) {
            *text += &format!("data: {line}\n");
        }
        text.push('\n');
    }
}

fn event(record: &Record, phase: u8, name: &'static str, status: Status) -> Event {
    let version = if phase >= PROGRESS { record.version } else { 0 };
    Event { id: EventId { attempt: status.attempt, phase, version }, name, status }
}

fn queued(record: &Record) -> Option<Event> {
    let due_at = record.due_at.filter(|_| record.state == TaskState::Queued && record.attempt == 0);
    let status = Status { state: TaskState::Queued, attempt: 0, due_at, started_at: None, ..initial_status(record) };
    Some(event(record, QUEUED, "queued", status))
}

fn started(record: &Record) -> Option<Event> {
    let status = Status { state: TaskState::Running, ..initial_status(record) };
    (record.attempt > 0).then(|| event(record, STARTED, "started", status))
}

fn progress(record: &Record) -> Option<Event> {
    let has_progress = record.progress.is_some() || record.message.is_some() || record.cancel_requested_at.is_some();
    (record.state == TaskState::Running && has_progress)
        .then(|| event(record, PROGRESS, "progress", Status::from(record)))
}

/// The event of a job that waits for its next attempt.
fn requeued(record: &Record) -> Option<Event> {
    (record.state == TaskState::Queued && record.attempt > 0)
        .then(|| event(record, REQUEUED, "queued", Status::from(record)))
}

fn finished(record: &Record) -> Option<Event> {
    record.state.is_final().then(|| event(record, FINISHED, "finished", Status::from(record)))
}

/// Returns the status without everything that changes after the start.
fn initial_status(record: &Record) -> Status {
    let status = Status::from(record);
    Status {
        due_at: None,
        progress: None,
        message: None,
        finished_at: None,
        cancel_requested_at: None,
        reason: None,
        result: None,
        error: None,
        ..status
    }
}

/// The events of one task until it finishes.
///
/// The stream makes progress only when it is polled, and buffers only what the next poll returns. A
/// client that never reads costs a permit and a few kilobytes.
pub(super) struct EventStream {
    buffer: String,
    /// The last event that was written to the buffer, or that the client has received before.
    last: Option<EventId>,
    /// `None` if the stream has ended, apart from the buffer.
    next: Option<Pin<Box<dyn Future<Output = Next> + Send>>>,
    keep_alive: Duration,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

/// Field that makes clients reconnect after a second.
const RETRY: &str = "retry: 1000\n\n";
/// End of a stream whose task could not be read for a while. A reconnection gets an error as long
/// as that lasts, so clients should wait for longer.
const FAILED: &str = "retry: 10000\n: the task cannot be read, reconnect to resume\n\n";
const KEEP_ALIVE_COMMENT: &str = ": keep-alive\n\n";
/// Comment before the end of a stream. Clients ignore it. It explains the end to a person who reads
/// the stream.
const SHUTDOWN_COMMENT: &str = ": shutting down, reconnect to resume\n\n";

impl EventStream {
    pub(super) fn new(
        changes: Box<dyn Changes>,
        last: Option<EventId>,
        keep_alive: Duration,
        streams_ended: StreamsEnded,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let idle = Box::pin(sleep(keep_alive));
        let mut stream = Self { buffer: RETRY.to_owned(), last, next: None, keep_alive, idle, _permit: permit };
        stream.write_events(changes.record());
        if !changes.record().state.is_final() {
            stream.next = Some(Box::pin(next(changes, streams_ended)));
        }
        stream
    }

    fn write_events(&mut self, record: &Record) {
        for event in Event::after(self.last, record) {
            event.write(&mut self.buffer);
            self.last = Some(event.id);
        }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if !self.buffer.is_empty() {
                // Unlike a deadline, `sleep` accepts any duration.
                self.idle.set(sleep(self.keep_alive));
                return Poll::Ready(Some(Bytes::from(std::mem::take(&mut self.buffer))));
            }
            let Some(waiting) = &mut self.next else { return Poll::Ready(None) };
            let Poll::Ready(outcome) = waiting.as_mut().poll(cx) else {
                ready!(self.idle.as_mut().poll(cx));
                self.buffer.push_str(KEEP_ALIVE_COMMENT);
                continue;
            };
            self.next = None;
            match outcome {
                Next::Change(changes, streams_ended) => {
                    self.write_events(changes.record());
                    if !changes.record().state.is_final() {
                        self.next = Some(Box::pin(next(changes, streams_ended)));
                    }
                }
                Next::End => {}
                Next::Failed => self.buffer.push_str(FAILED),
                Next::Shutdown(changes) => {
                    self.write_events(changes.record());
                    if !changes.record().state.is_final() {
                        self.buffer.push_str(SHUTDOWN_COMMENT);
                    }
                }
            }
        }
    }
}

/// The result of [`next`].
enum Next {
    Change(Box<dyn Changes>, StreamsEnded),
    /// There is no further change.
    End,
    /// The task could not be read, although that was tried for a while. The client reconnects, and
    /// resumes after its last event.
    Failed,
    /// All streams must end. The record is the newest one.
    Shutdown(Box<dyn Changes>),
}

/// Waits for the next change, or until all streams must end.
async fn next(mut changes: Box<dyn Changes>, mut streams_ended: StreamsEnded) -> Next {
    let mut change = changes.changed();
    let changed = poll_fn(|cx| match change.as_mut().poll(cx) {
        Poll::Ready(changed) => Poll::Ready(Some(changed)),
        Poll::Pending => streams_ended.as_mut().poll(cx).map(|()| None),
    });
    let changed = changed.await;
    drop(change);
    if let Some(changed) = changed {
        return match changed {
            Ok(true) => Next::Change(changes, streams_ended),
            Ok(false) => Next::End,
            Err(error) => {
                error.report_response();
                Next::Failed
            }
        };
    }
    // A sender publishes a record first and notifies its receivers afterwards. A new future sees a
    // record whose notification is still on its way, even if the task's budget is used up.
    let mut change = unconstrained(changes.changed());
    _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut change).poll(cx))).await;
    drop(change);
    Next::Shutdown(changes)
}
