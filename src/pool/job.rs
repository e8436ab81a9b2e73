use std::{fmt, sync::Arc};

use tokio::time::Instant;

use super::{Priority, Rejection, call::Work, queue::Waits};

/// One turn of a call: what a [`Pool`](super::Pool) runs.
///
/// A job that is dropped without being run answers its call with [`Rejection::Closed`]: nothing is lost silently.
pub struct Job(Option<Arc<dyn Work>>);

impl Job {
    pub(super) fn new(work: Arc<dyn Work>) -> Self {
        Self(Some(work))
    }

    /// Polls the call once, on this thread; or drops it if its caller left or the gate is halted. Never unwinds.
    pub fn run(mut self) {
        if let Some(work) = self.0.take() {
            work.run();
        }
    }

    /// Drops the call on this thread and answers its caller with `rejection`. Never unwinds.
    pub fn refuse(mut self, rejection: Rejection) {
        if let Some(work) = self.0.take() {
            work.refuse(rejection);
        }
    }

    /// `false` for a call that was never polled: only those may be shed or reordered. A call that has started was
    /// promised an answer, and a pool runs its wakes before new calls.
    pub fn has_started(&self) -> bool {
        self.0.as_ref().is_some_and(|work| work.has_started())
    }

    /// The priority that the call was made with.
    pub fn priority(&self) -> Priority {
        self.standing().0
    }

    /// Both of these.
    pub(super) fn standing(&self) -> (Priority, bool) {
        self.0.as_ref().map_or((Priority::Normal, false), |work| work.standing())
    }

    /// `true` if the caller left: running the job only drops the call.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|work| work.is_cancelled())
    }
}

impl Waits for Job {
    fn since(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, |work| work.created())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(work) = self.0.take() {
            work.refuse(Rejection::Closed);
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("has_started", &self.has_started())
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}
