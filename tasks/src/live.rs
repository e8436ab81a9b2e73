use std::sync::Arc;

use tokio::sync::watch;
use tower_offload::background::{Completion, Reservation, TaskHandle};

use super::{Failure, Reason, Record, TaskId, TaskState, progress::Report, record::Ending, shared::Shared};
use crate::{
    panic::contained,
    sync::{Mutex, lock},
};

/// A task of this process, from before it is accepted until its final record is written: the newest that is known of it.
pub(super) struct Live {
    id: TaskId,
    record: watch::Sender<Record>,
    /// Set by the work when it ends; what that comes to is said by `over`.
    outcome: Mutex<Option<Ending>>,
    /// It begins only after the response of the request that registered it.
    awaits_response: bool,
    handle: TaskHandle,
    shared: Arc<Shared>,
}

impl Live {
    pub(super) fn new(record: Record, place: &Reservation, shared: Arc<Shared>) -> Self {
        let (id, record) = (record.id, watch::Sender::new(record));
        let (awaits_response, handle) = (place.awaits_response(), place.handle());
        Self { id, record, outcome: Mutex::new(None), awaits_response, handle, shared }
    }

    pub(super) fn id(&self) -> TaskId {
        self.id
    }

    pub(super) fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// It has not begun, and does not as long as the response is not over.
    pub(super) fn awaits_response(&self) -> bool {
        self.awaits_response && self.record.borrow().state == TaskState::Queued
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Record> {
        self.record.subscribe()
    }

    /// The work is about to run; `false` if it must not.
    pub(super) fn begin(&self) -> bool {
        let now = self.shared.now();
        self.change(false, |record| record.start(now))
    }

    /// How the work itself has ended.
    pub(super) fn conclude(&self, ending: Ending) {
        *lock(&self.outcome) = Some(ending);
    }

    /// One that has not begun never will, and is over. One that runs is told.
    pub(super) fn cancel(&self) {
        let now = self.shared.now();
        self.change(false, |record| {
            let is_news = record.request_cancel(now);
            let is_over = record.attempt == 0 && record.finish(Ending::Cancelled(Reason::Requested, None), now);
            is_news || is_over
        });
        self.handle.cancel();
    }

    pub(super) fn finish(&self, ending: Ending) {
        let now = self.shared.now();
        self.change(false, |record| record.finish(ending, now));
    }

    /// The background says what became of it.
    pub(super) fn over(&self, over: Completion) {
        let outcome = lock(&self.outcome).take();
        let ending = match (over, outcome) {
            (Completion::Cancelled, Some(Ending::Succeeded(result))) => Ending::Succeeded(result), // it came to its end before it looked
            (Completion::Cancelled, Some(Ending::Failed(failure))) => {
                Ending::Cancelled(self.why_cancelled(), Some(failure))
            }
            (Completion::Cancelled, _) => Ending::Cancelled(self.why_cancelled(), None),
            (Completion::Completed | Completion::Failed, Some(ending)) => ending,
            (Completion::Refused, _) => Ending::Failed(Failure::new("refused", "the pool did not run it")),
            (Completion::Skipped, _) => Ending::Cancelled(Reason::ResponseFailed, None),
            (Completion::TimedOut, _) => Ending::TimedOut,
            (_, _) => Ending::Lost(Reason::RuntimeLost),
        };
        self.finish(ending);
    }

    fn why_cancelled(&self) -> Reason {
        let is_requested = self.record.borrow().cancel_requested_at.is_some();
        if !is_requested && self.handle.is_background_closed() { Reason::Shutdown } else { Reason::Requested }
    }

    /// Whoever watches is woken, and the record is written: soon, or at once unless it `can_wait`.
    fn change(&self, can_wait: bool, change: impl FnOnce(&mut Record) -> bool) -> bool {
        let mut changed = false;
        contained(|| {
            self.record.send_if_modified(|record| {
                changed = change(record);
                changed
            }); // its wakers are foreign
        });
        if changed {
            self.shared.changed(self.id, can_wait);
        }
        changed
    }
}

impl Report for Live {
    fn id(&self) -> TaskId {
        self.id
    }

    fn advance(&self, progress: Option<f64>, message: Option<String>) {
        self.change(true, |record| record.advance(progress, message));
    }

    /// Somebody asked for that, or what it does is kept no more.
    fn is_unwanted(&self) -> bool {
        let record = self.record.borrow();
        record.cancel_requested_at.is_some() || record.state.is_final()
    }
}
