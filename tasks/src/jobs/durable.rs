use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Builder, DrainReport, Enqueue, Job, river::Client, shared::Shared};
use crate::Tasks;

/// A queue of durable jobs. A handle: clones are the same queue.
///
/// See the [module docs](crate::jobs). With the last handle everything ends as with [`drain`](Self::drain) and no time.
#[derive(Clone)]
pub struct Durable {
    owner: Arc<Owner>,
}

/// Dropped with the last handle. The keepers do not have one.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
        if let Some(client) = self.0.client() {
            client.stop_and_cancel();
        }
        self.0.finish();
    }
}

/// How much of a drain's time is left for jobs that were asked to end, at most.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Longer than anybody waits, and clocks can still tell when it ends.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Durable {
    /// A queue in the database of these tasks, whose status service then tells of its jobs too.
    pub fn builder(tasks: &Tasks) -> Builder {
        Builder::new(tasks.clone())
    }

    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { owner: Arc::new(Owner(shared)) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }

    /// The tasks whose records its jobs have.
    pub fn tasks(&self) -> &Tasks {
        &self.shared().tasks
    }

    /// Enqueues a job: await it, with options before that if there are any.
    ///
    /// When it is there the job and its record are committed, and some process will do it, at least once, if there is one with a worker for its
    /// kind. What many callers enqueue at once goes into one transaction.
    ///
    /// # Errors
    ///
    /// Awaiting it fails if it cannot be kept (no JSON, too large, NUL in it; an owner or a queue with a bad name), if the database fails, or if
    /// this is closed. If the answer to a commit was lost the job may run although nobody was told: who tries again should make it
    /// [unique](Enqueue::unique).
    ///
    /// # Cancel safety
    ///
    /// Dropped while it is awaited, the job may be enqueued or not.
    pub fn enqueue<J: Job>(&self, job: J) -> Enqueue<'_, J> {
        Enqueue::new(self, job)
    }

    /// How many jobs are being worked in this process.
    pub fn running(&self) -> usize {
        self.shared().jobs.len()
    }

    /// `true` once [`drain`](Self::drain) was called.
    pub fn is_closed(&self) -> bool {
        self.shared().is_closed()
    }

    /// Takes no more jobs, lets those that run come to their end, and hands back those that have not by the deadline: they begin once more,
    /// here after a restart or elsewhere at once, and the attempt is not counted.
    ///
    /// Before the end they are asked to stop: async work is dropped, sync work sees [`Progress::is_cancelled`](crate::Progress::is_cancelled),
    /// for the last fifth of the time, at most a second. Sync work that goes on is reported; while it does, the lease is kept.
    ///
    /// # Panics
    ///
    /// The future panics outside of a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, nothing more is taken, and what runs goes on.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        let shared = self.shared();
        shared.close();
        let end = Instant::now() + deadline.min(FOR_EVER);
        let mut is_written = false;
        if let Some(client) = shared.client() {
            client.stop();
            let soft = end - (deadline / 5).min(LAST_WORDS); // not before now: it is a part of what was added
            let ended = match timeout_at(soft, client.ended()).await {
                Ok(ended) => Ok(ended),
                Err(_) => {
                    client.stop_and_cancel();
                    timeout_at(end, client.ended()).await
                }
            };
            match ended {
                Ok(Ok(())) => {
                    is_written = shared.jobs.len() == 0 && self.leave(&client, end).await;
                    if is_written {
                        shared.set_over();
                    }
                }
                Ok(Err(error)) => shared.complain("River has not ended in order", &error),
                Err(_) => {}
            }
        }
        shared.finish();
        DrainReport { still_running: shared.jobs.ids(), is_written }
    }

    /// Gives the lease back, if the database has nothing more of ours that runs: River does not say whether it could write how jobs ended.
    async fn leave(&self, client: &Client, end: Instant) -> bool {
        let shared = self.shared();
        let left = timeout_at(end.max(Instant::now() + LAST_WORDS), client.leave(&shared.database)).await;
        match left {
            Ok(Ok(is_written)) => is_written,
            Ok(Err(error)) => {
                shared.complain("the lease could not be given back", &error);
                false
            }
            Err(_) => false,
        }
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable")
            .field("running", &self.running())
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
