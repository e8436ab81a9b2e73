use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Change, OperationError};
use crate::{
    Record, TaskId, TaskState, Tasks,
    store::{Filter, Page},
};

/// An operation on all tasks that a filter selects. See [`Tasks::bulk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "An operation on all tasks that a filter selects.")
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BulkAction {
    /// Retries jobs that failed, timed out or were cancelled, and those that succeeded only if the
    /// filter names that state.
    Retry,
    /// Cancels queued and running tasks whose cancellation was not requested yet.
    Cancel,
    /// Discards queued jobs.
    Discard,
}

impl BulkAction {
    /// Returns the states of the tasks that it changes, if the filter names these.
    fn states(self, wanted: &[TaskState]) -> Vec<TaskState> {
        use TaskState::{Cancelled, Failed, Queued, Running, Succeeded, TimedOut};
        let (default, possible): (&[_], &[_]) = match self {
            Self::Retry => (&[Failed, TimedOut, Cancelled], &[Failed, TimedOut, Cancelled, Succeeded]),
            Self::Cancel => (&[Queued, Running], &[Queued, Running]),
            Self::Discard => (&[Queued], &[Queued]),
        };
        let named = possible.iter().filter(|state| wanted.contains(state));
        if wanted.is_empty() { default.to_vec() } else { named.copied().collect() }
    }

    fn change(self) -> Change {
        match self {
            Self::Retry => Change::Retry,
            Self::Cancel => Change::Cancel,
            Self::Discard => Change::Discard,
        }
    }
}

/// Result of [`Tasks::bulk`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "How many tasks an operation has changed, and whether there may be more.")
)]
#[non_exhaustive]
pub struct BulkReport {
    /// The number of tasks that were changed, at most 1000.
    pub changed: u64,
    /// True if there may be more tasks to change. Repeat the operation with `after`.
    pub remaining: bool,
    /// The task after which to continue. Absent if there are no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<TaskId>,
}

/// Number of jobs in one transaction. It locks them for some milliseconds.
const BATCH: usize = 100;
/// Time after which no other batch is begun.
const MAX_TIME: Duration = Duration::from_secs(5);

impl Tasks {
    /// Applies an operation to the tasks that `filter` selects, newest first, and returns how many
    /// were changed.
    ///
    /// It begins at `page`, and changes at most [`Page::limit`] tasks, in transactions of 100 jobs.
    /// It selects no others after 5 s. Of those that it has selected, it retries the oldest first,
    /// so that jobs of one [sequence](crate::jobs::Enqueue::sequence) run again in their order.
    /// Jobs that only the next call selects are older, but rejoin their sequences after them.
    ///
    /// If there may be more, [`BulkReport::remaining`] is `true`: call it again with a page
    /// [after](Page::after) [`BulkReport::after`]. Tasks whose state has changed meanwhile are
    /// omitted and not counted, and so are tasks that are not jobs, unless they are cancelled.
    ///
    /// # Errors
    ///
    /// Returns an error if the database failed, or if the operation needs a job queue and none
    /// [has started](OperationError::is_no_queue). Tasks may have been changed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it completes, some of the tasks may have been changed.
    pub async fn bulk(&self, action: BulkAction, filter: &Filter, page: Page) -> Result<BulkReport, OperationError> {
        let queue = self.queue();
        if queue.is_none() && action != BulkAction::Cancel {
            return Err(OperationError::no_queue());
        }
        let until = Instant::now() + MAX_TIME;
        let filter = Filter { states: action.states(&filter.states), ..filter.clone() };
        let mut report = BulkReport { after: page.after, ..BulkReport::default() };
        if filter.states.is_empty() {
            return Ok(BulkReport::default()); // the action changes no task in the states of the filter
        }
        let mut retried = Vec::new();
        loop {
            let changed = usize::try_from(report.changed).unwrap_or(usize::MAX);
            let left = page.clamped().limit.saturating_sub(changed.saturating_add(retried.len()));
            if left == 0 || Instant::now() >= until {
                report.remaining = true;
                break;
            }
            let page = Page { after: report.after, limit: left.min(BATCH) };
            let listing = self.list(&filter, page).await?;
            let is_requested = |record: &&Record| record.cancel_requested_at.is_some();
            let wanted = listing.records.iter().filter(|record| action != BulkAction::Cancel || !is_requested(record));
            let (jobs, others): (Vec<_>, Vec<_>) = wanted.partition(|record| record.queue.is_some());
            let jobs: Vec<_> = jobs.iter().map(|record| record.id).collect();
            match &queue {
                Some(_) if action == BulkAction::Retry => retried.extend(jobs),
                Some(queue) if !jobs.is_empty() => {
                    report.changed += queue.change(&jobs, action.change()).await?.changed.len() as u64;
                }
                // The process that has the queue sees the requests.
                None => report.changed += self.cancel_each(&jobs).await?,
                Some(_) => {}
            }
            if action == BulkAction::Cancel {
                let others: Vec<_> = others.iter().map(|record| record.id).collect();
                report.changed += self.cancel_each(&others).await?;
            }
            report.after = listing.next;
            if listing.next.is_none() {
                break;
            }
        }
        retried.reverse();
        for jobs in retried.chunks(BATCH) {
            let Some(queue) = &queue else { break };
            report.changed += queue.change(jobs, Change::Retry).await?.changed.len() as u64;
        }
        Ok(report)
    }

    /// Cancels tasks, and returns how many had not finished meanwhile.
    async fn cancel_each(&self, ids: &[TaskId]) -> Result<u64, OperationError> {
        let mut cancelled = 0;
        for id in ids {
            let record = self.cancel(*id).await?.into_record();
            cancelled += u64::from(record.is_some_and(|record| record.cancel_requested_at.is_some()));
        }
        Ok(cancelled)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tower_offload::Background;

    use crate::{MemoryStore, Tasks};

    #[tokio::test]
    async fn task_that_has_finished_meanwhile_is_not_counted() {
        let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
        let work = |is_endless: bool| async move {
            if is_endless {
                std::future::pending::<()>().await;
            }
            Ok::<_, std::convert::Infallible>(())
        };
        let finished = tasks.track("a").spawn(&background, move |_| work(false)).await.unwrap().id();
        while !tasks.get(finished).await.unwrap().into_record().unwrap().state.is_final() {
            tokio::task::yield_now().await;
        }
        let running = tasks.track("a").spawn(&background, move |_| work(true)).await.unwrap().id();
        assert_eq!(tasks.cancel_each(&[finished, running]).await.unwrap(), 1);
    }
}
