use std::sync::{Arc, Weak};

use tokio::sync::{oneshot, watch};
use tower_offload::background::{Completion, Reservation, TaskHandle};

use crate::{
    Failure, Reason, Record, StoreError, TaskId, TaskState,
    panic::ignore_panic,
    progress::ProgressSink,
    record::Ending,
    sync::{Mutex, lock},
    timestamp::Clock,
};

/// Receives the result of a request to the writer.
pub(super) type Reply = oneshot::Sender<Result<(), StoreError>>;

/// An unfinished task of this process: the newest version of its record, and what is needed to
/// cancel it.
///
/// It exists from before the record is accepted until its final version is written. The writer owns
/// it, so it refers to the writer only weakly. The completion callback of the task keeps the writer
/// alive until the task has ended.
pub(crate) struct ActiveTask {
    id: TaskId,
    /// The newest version. A slow subscriber skips the versions before it.
    record: watch::Sender<Record>,
    /// How the work ended, set by the work. [`complete`](Self::complete) derives the final state
    /// from it.
    outcome: Mutex<Option<Ending>>,
    /// The caller that waits until the record is accepted.
    accept_reply: Mutex<Option<Reply>>,
    /// `true` if the task starts after the response of the request that submitted it.
    awaits_response: bool,
    handle: TaskHandle,
    clock: Clock,
    listener: Weak<dyn ChangeListener>,
}

/// Receives a notification of every change of a record.
pub(super) trait ChangeListener: Send + Sync {
    fn on_change(self: Arc<Self>, id: TaskId, urgency: Urgency);
}

/// Time at which a changed record is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Now,
    /// Together with the next task that is accepted, or a few milliseconds later. A transaction
    /// costs more than its records, and a client that waits for one task after the other would
    /// otherwise wait for two or three of them each time.
    NextBatch,
    /// Soon, together with later changes.
    Soon,
}

impl ActiveTask {
    pub(super) fn new(
        record: Record,
        reservation: &Reservation,
        clock: Clock,
        listener: Weak<dyn ChangeListener>,
    ) -> Self {
        Self {
            id: record.id,
            record: watch::Sender::new(record),
            outcome: Mutex::new(None),
            accept_reply: Mutex::new(None),
            awaits_response: reservation.awaits_response(),
            handle: reservation.handle(),
            clock,
            listener,
        }
    }

    /// Returns a copy of the newest version of the record.
    pub(crate) fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// Returns `true` if the task has not started and does not start before a response was sent.
    pub(crate) fn awaits_response(&self) -> bool {
        self.awaits_response && self.record.borrow().state == TaskState::Queued
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Record> {
        self.record.subscribe()
    }

    pub(super) fn set_accept_reply(&self, reply: Reply) {
        *lock(&self.accept_reply) = Some(reply);
    }

    /// Replies to the caller that waits until the record is accepted.
    pub(super) fn reply(&self, result: Result<(), StoreError>) {
        let reply = lock(&self.accept_reply).take();
        if let Some(reply) = reply {
            ignore_panic(|| drop(reply.send(result))); // wakes the caller, whose waker is user code
        }
    }

    /// Marks the task as running. Returns `false` if its work must not run.
    pub(crate) fn start(&self) -> bool {
        let now = self.clock.now();
        self.change(Urgency::NextBatch, |record| record.start(now))
    }

    /// Stores how the work ended, until the background reports the completion of the task.
    pub(crate) fn set_outcome(&self, ending: Ending) {
        *lock(&self.outcome) = Some(ending);
    }

    /// Cancels the task. One that has not started finishes at once. A running future is dropped,
    /// and a running closure can poll [`Progress::is_cancelled`](crate::Progress::is_cancelled).
    pub(crate) fn cancel(&self) {
        let now = self.clock.now();
        self.change(Urgency::Now, |record| {
            let is_new = record.request_cancel(now);
            let has_finished = record.attempt == 0 && record.finish(Ending::Cancelled(Reason::Requested, None), now);
            is_new || has_finished
        });
        self.handle.cancel();
    }

    pub(crate) fn finish(&self, ending: Ending) {
        let now = self.clock.now();
        self.change(Urgency::NextBatch, |record| record.finish(ending, now));
    }

    /// Finishes the task according to its completion in the background.
    pub(crate) fn complete(&self, completion: Completion) {
        let outcome = lock(&self.outcome).take();
        self.finish(match (completion, outcome) {
            (Completion::Skipped, _) => Ending::Cancelled(Reason::ResponseFailed, None),
            (Completion::Refused, _) => Ending::Failed(Failure::new("refused", "the pool refused the task")),
            // If a closure succeeds despite the cancellation, the task has succeeded.
            (Completion::Cancelled, Some(Ending::Succeeded(result))) => Ending::Succeeded(result),
            (Completion::Cancelled, Some(Ending::Failed(failure))) => {
                Ending::Cancelled(self.cancel_reason(), Some(failure))
            }
            (Completion::Cancelled, _) => Ending::Cancelled(self.cancel_reason(), None),
            (Completion::TimedOut, _) => Ending::TimedOut,
            (Completion::Completed | Completion::Failed, Some(ending)) => ending,
            // `Completion::Lost`, and every other completion without an outcome.
            _ => Ending::Lost(Reason::RuntimeLost),
        });
    }

    fn cancel_reason(&self) -> Reason {
        let is_requested = self.record.borrow().cancel_requested_at.is_some();
        if !is_requested && self.handle.is_background_closed() { Reason::Shutdown } else { Reason::Requested }
    }

    /// Applies `change` and, if it returns `true`, notifies subscribers and the writer.
    fn change(&self, urgency: Urgency, change: impl FnOnce(&mut Record) -> bool) -> bool {
        let mut changed = false;
        // Subscribers may be woken in here, and their wakers are user code.
        ignore_panic(|| {
            self.record.send_if_modified(|record| {
                changed = change(record);
                changed
            });
        });
        if let Some(listener) = self.listener.upgrade().filter(|_| changed) {
            listener.on_change(self.id, urgency);
        }
        changed
    }
}

impl ProgressSink for ActiveTask {
    fn id(&self) -> TaskId {
        self.id
    }

    fn advance(&self, progress: Option<f64>, message: Option<String>) {
        self.change(Urgency::Soon, |record| record.advance(progress, message));
    }

    /// Returns `true` for a final record too: its task should stop, since its result is dropped.
    fn is_cancelled(&self) -> bool {
        let record = self.record.borrow();
        record.cancel_requested_at.is_some() || record.state.is_final()
    }
}
