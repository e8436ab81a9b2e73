//! Operations of operators on jobs.
//!
//! A change is one transaction, which locks the jobs before it looks at their states. So of two
//! operators, or of an operator and a worker, one comes first, and the other one finds the state
//! that it has left. As in all transactions, a job is locked before its record.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::collections::HashSet;

use riverqueue::sqlx;

use super::{Database, MAX_ATTEMPTS};
use crate::{
    OperationError, StoreError, TaskId, TaskState,
    jobs::running::Claim,
    operation::{Change, Changes, QueueState},
    store::sql::store_error,
};

/// River's queue that holds the claimed jobs of kinds that are paused. No process works it.
const PAUSED_QUEUE: &str = "tower_offload_paused";
/// Key of the queue of such a job in River's metadata.
macro_rules! queue_key {
    () => {
        "tower_offload:queue"
    };
}
use queue_key;

/// Class of the failure of a discarded job.
const DISCARDED_CLASS: &str = "discarded";
const DISCARDED_MESSAGE: &str = "the job was discarded before its next attempt";
/// Maximum delay of a job that is made available at once, in milliseconds.
const IMMEDIATE_MILLIS: i64 = 5000;
/// Maximum number of kinds that are paused. Each process reads them every two seconds.
pub(in crate::jobs) const MAX_PAUSED_KINDS: i64 = 1000;
/// Maximum number of jobs that one transaction moves back when their kind is resumed.
const MAX_MOVED: i64 = 1000;
/// Maximum number of queues in a list.
const MAX_QUEUES: i64 = 1000;

/// A job that a change has locked.
struct LockedJob {
    river_id: i64,
    id: TaskId,
    attempt: i64,
    /// The state in River's table.
    state: String,
    /// The state of the record. It may be older.
    record_state: i64,
    queue: String,
}

impl LockedJob {
    fn state(&self) -> TaskState {
        match &*self.state {
            "running" => TaskState::Running,
            "completed" => TaskState::Succeeded,
            "cancelled" => TaskState::Cancelled,
            "discarded" if self.record_state == i64::from(i16::from(TaskState::TimedOut)) => TaskState::TimedOut,
            "discarded" => TaskState::Failed,
            _ => TaskState::Queued,
        }
    }

    /// Returns an error if the state of the job does not permit the change.
    fn check(&self, change: Change) -> Result<(), OperationError> {
        let state = self.state();
        let is_permitted = match change {
            Change::Retry => state.is_final(),
            Change::Cancel => !state.is_final(),
            Change::Discard | Change::Reschedule(_) => state == TaskState::Queued,
        };
        if !is_permitted {
            return Err(OperationError::wrong_state(state, change));
        }
        if change == Change::Retry && self.attempt >= i64::from(i16::MAX) {
            let message = "the job has had 32 767 attempts, and the queue counts no more: enqueue it again";
            return Err(OperationError::invalid(message));
        }
        Ok(())
    }
}

/// Result of a transaction.
#[derive(Default)]
struct Changed {
    changes: Changes,
    /// Queues in which jobs have become available.
    queues: HashSet<String>,
}

/// Divides the locked jobs into those that are changed and those that are not.
fn divide(jobs: Vec<LockedJob>, change: Change) -> (Vec<i64>, Changed) {
    let (mut river_ids, mut changed) = (Vec::new(), Changed::default());
    for job in jobs {
        match job.check(change) {
            Ok(()) => {
                river_ids.push(job.river_id);
                changed.changes.changed.push(job.id);
                if matches!(change, Change::Retry | Change::Reschedule(_)) {
                    changed.queues.insert(job.queue);
                }
            }
            Err(error) => changed.changes.refused.push((job.id, error)),
        }
    }
    (river_ids, changed)
}

impl Database {
    /// Changes the jobs whose state permits it. Also returns the queues in which jobs have become
    /// available.
    pub(in crate::jobs) async fn change(
        &self,
        ids: &[TaskId],
        change: Change,
    ) -> Result<(Changes, HashSet<String>), OperationError> {
        let Changed { mut changes, mut queues } = match self.change_all(ids, change).await? {
            Some(changed) => changed,
            None if ids.len() > 1 => Changed::default(),
            None => {
                let refused = ids.iter().map(|id| (*id, OperationError::duplicate())).collect();
                return Ok((Changes { refused, ..Changes::default() }, HashSet::new()));
            }
        };
        if changes.changed.is_empty() && changes.refused.is_empty() {
            // One of them equals another unique job. Without it the others can be changed.
            for id in ids {
                match self.change_all(std::slice::from_ref(id), change).await? {
                    Some(changed) => {
                        changes.changed.extend(changed.changes.changed);
                        changes.refused.extend(changed.changes.refused);
                        queues.extend(changed.queues);
                    }
                    None => changes.refused.push((*id, OperationError::duplicate())),
                }
            }
        }
        Ok((changes, queues))
    }

    /// Changes the jobs in one transaction. Returns `None` if one of them would equal a unique job.
    async fn change_all(&self, ids: &[TaskId], change: Change) -> Result<Option<Changed>, StoreError> {
        dispatch!(self, |database| {
            let mut attempts = 1;
            loop {
                match database.change_jobs(ids, change).await? {
                    Ok(changed) => return Ok(Some(changed)),
                    Err(error) if is_duplicate(&error) => return Ok(None),
                    Err(error) if database.is_conflict(&error) && attempts < MAX_ATTEMPTS => attempts += 1,
                    Err(error) => return Err(store_error(error)),
                }
            }
        })
    }

    /// Hands a claimed job back without counting the attempt, and puts it aside until its kind is
    /// resumed. Returns `false` if the kind is not paused, or if the claim is no longer valid.
    pub(in crate::jobs) async fn put_aside(&self, claim: &Claim, kind: &str) -> Result<bool, StoreError> {
        dispatch!(self, |database| database.put_aside(claim, kind).await)
    }

    /// Returns the kinds that are paused.
    pub(in crate::jobs) async fn paused_kinds(&self) -> Result<Vec<String>, StoreError> {
        const KINDS: &str = "SELECT kind FROM tower_offload_paused_kind ORDER BY kind";
        dispatch!(self, |database| {
            database.read(async |connection| sqlx::query_scalar(KINDS).fetch_all(connection).await).await
        })
    }

    /// Returns the queues of River's table, and which of them are paused.
    pub(in crate::jobs) async fn queues(&self) -> Result<Vec<QueueState>, StoreError> {
        const QUEUES: &str =
            "SELECT name, paused_at IS NOT NULL FROM river_queue WHERE name <> $1 ORDER BY name LIMIT $2";
        let queues = dispatch!(self, |database| {
            database
                .read(async |connection| {
                    sqlx::query_as::<_, (String, bool)>(QUEUES)
                        .bind(PAUSED_QUEUE)
                        .bind(MAX_QUEUES)
                        .fetch_all(connection)
                        .await
                })
                .await
        });
        Ok(queues?.into_iter().map(|(name, paused)| QueueState::new(name, paused)).collect())
    }

    /// Pauses a kind. Returns `false` if too many are paused.
    pub(in crate::jobs) async fn pause_kind(&self, kind: &str) -> Result<bool, StoreError> {
        const PAUSE: &str = "
INSERT INTO tower_offload_paused_kind (kind, paused_at)
SELECT $1, $2 WHERE (SELECT count(*) FROM tower_offload_paused_kind) < $3 ON CONFLICT (kind) DO NOTHING";
        const IS_PAUSED: &str = "SELECT count(*) FROM tower_offload_paused_kind WHERE kind = $1";
        let now = i64::try_from(crate::Timestamp::from(std::time::SystemTime::now()).as_millis()).unwrap_or(i64::MAX);
        let paused = dispatch!(self, |database| {
            let pause = database.transaction(async |transaction| {
                let pause = sqlx::query(PAUSE).bind(kind).bind(now).bind(MAX_PAUSED_KINDS);
                pause.execute(&mut **transaction).await?;
                sqlx::query_scalar::<_, i64>(IS_PAUSED).bind(kind).fetch_one(&mut **transaction).await
            });
            pause.await
        });
        Ok(paused?.map_err(store_error)? > 0)
    }

    /// Resumes a kind. Its jobs are still put aside.
    pub(in crate::jobs) async fn resume_kind(&self, kind: &str) -> Result<(), StoreError> {
        const RESUME: &str = "DELETE FROM tower_offload_paused_kind WHERE kind = $1";
        let resumed = dispatch!(self, |database| {
            let resume = database.transaction(async |transaction| {
                sqlx::query(RESUME).bind(kind).execute(&mut **transaction).await.map(drop)
            });
            resume.await
        });
        resumed?.map_err(store_error)
    }

    /// Moves jobs back to their queues that were put aside and whose kind is not paused, at most
    /// [`MAX_MOVED`]. Returns the queues, and `true` if there may be more.
    pub(in crate::jobs) async fn move_back(&self) -> Result<(HashSet<String>, bool), StoreError> {
        let moved: Vec<String> = dispatch!(self, |database| database.move_back().await)?;
        let has_more = moved.len() >= usize::try_from(MAX_MOVED).unwrap_or(usize::MAX);
        Ok((moved.into_iter().collect(), has_more))
    }
}

/// Returns `true` if the statement would have created two equal unique jobs.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}
