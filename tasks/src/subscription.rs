use std::fmt;

use tokio::sync::watch;

use crate::{Record, StoreError, follow::Follower};

/// Follows the changes of a task. Returned by [`Tasks::subscribe`](crate::Tasks::subscribe).
///
/// A task of this process wakes its subscribers, and so does the end of a job that this process
/// runs, or any process on Postgres. Other changes are polled twice a second, with one query for
/// all subscriptions of the process. If several changes happen between two calls of
/// [`changed`](Self::changed), only the latest record is returned.
pub struct Subscription {
    record: Record,
    source: Source,
}

enum Source {
    /// The task runs in this process.
    Active(watch::Receiver<Record>),
    /// Only the store knows the task.
    Store(Follower),
}

impl Subscription {
    pub(crate) fn active(mut receiver: watch::Receiver<Record>) -> Self {
        let record = receiver.borrow_and_update().clone();
        Self { record, source: Source::Active(receiver) }
    }

    pub(crate) fn stored(record: Record, follower: Follower) -> Self {
        Self { record, source: Source::Store(follower) }
    }

    /// Returns the record as of the latest call of [`changed`](Self::changed).
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Waits for the next change and returns the record. Returns `None` if the latest record is
    /// final or was evicted.
    ///
    /// # Errors
    ///
    /// Returns an error if the store could not be read for 30 seconds. A later call tries again.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, no change is missed.
    pub async fn changed(&mut self) -> Result<Option<&Record>, StoreError> {
        if self.record.state.is_final() {
            return Ok(None);
        }
        match &mut self.source {
            Source::Active(receiver) => {
                // The sender is dropped after it has sent a final record, or together with the
                // writer.
                if receiver.changed().await.is_err() {
                    return Ok(None);
                }
                self.record = receiver.borrow_and_update().clone();
            }
            Source::Store(follower) => loop {
                if follower.updates.changed().await.is_err() {
                    return Ok(None);
                }
                let update = follower.updates.borrow_and_update().clone();
                if let Some(error) = update.error {
                    return Err(error.duplicate());
                }
                match update.record {
                    // The first update may be older than the record.
                    Some(record) if record == self.record || record.version < self.record.version => {}
                    Some(record) => {
                        self.record = record;
                        break;
                    }
                    None => return Ok(None),
                }
            },
        }
        Ok(Some(&self.record))
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("record", &self.record).finish_non_exhaustive()
    }
}
