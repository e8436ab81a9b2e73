use std::{fmt, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{Record, StoreError, Tasks};

/// Tells each time that a task has changed. Made by [`Tasks::subscribe`].
///
/// Of changes that come faster than they are asked for only the newest is told. A task of this process wakes it; one of another is looked
/// for in the store twice a second.
pub struct Subscription {
    record: Record,
    source: Source,
}

enum Source {
    Elsewhere(Tasks),
    Here(watch::Receiver<Record>),
}

const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Subscription {
    pub(super) fn here(mut receiver: watch::Receiver<Record>) -> Self {
        let record = receiver.borrow_and_update().clone();
        Self { record, source: Source::Here(receiver) }
    }

    pub(super) fn elsewhere(record: Record, tasks: Tasks) -> Self {
        Self { record, source: Source::Elsewhere(tasks) }
    }

    /// The record as it was last told.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The record when it has changed since it was last told; `None` if that was final, or it is gone.
    ///
    /// # Errors
    ///
    /// If the store cannot be read. One may ask again.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, nothing is missed.
    pub async fn changed(&mut self) -> Result<Option<&Record>, StoreError> {
        if self.record.state.is_final() {
            return Ok(None);
        }
        match &mut self.source {
            Source::Here(receiver) => {
                if receiver.changed().await.is_err() {
                    return Ok(None); // not before the final record, which is never the last to be told
                }
                self.record = receiver.borrow_and_update().clone();
            }
            Source::Elsewhere(tasks) => loop {
                sleep(LOOK_EVERY).await;
                match tasks.get(self.record.id).await?.into_record() {
                    // Not by its version alone: a request to cancel adds to it, and the owner, who has not heard of that, comes to the same.
                    Some(record) if record == self.record => {}
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
