use riverqueue::sqlx::{self, Row, SqliteConnection};

use super::{
    Changed, DISCARDED_CLASS, DISCARDED_MESSAGE, IMMEDIATE_MILLIS, LockedJob, MAX_MOVED, PAUSED_QUEUE, divide,
    queue_key,
};
use crate::{
    StoreError, TaskId,
    jobs::{
        database::{
            recovery::record_id,
            sqlite::{SqliteJobs, claimed_at, claimed_by, json_or, now},
        },
        running::Claim,
    },
    operation::Change,
    store::sql::store_error,
};

impl SqliteJobs {
    /// The transaction is the only one that writes, so the jobs are locked.
    pub(super) async fn change_jobs(
        &self,
        ids: &[TaskId],
        change: Change,
    ) -> Result<Result<Changed, sqlx::Error>, StoreError> {
        self.transaction(async |transaction| {
            let mut locked = Vec::new();
            for id in ids {
                let find = sqlx::query(FIND).bind(&id.as_bytes()[..]);
                if let Some(row) = find.fetch_optional(&mut **transaction).await? {
                    locked.push(locked_job(&row)?);
                }
            }
            // Like on Postgres, so that jobs of one sequence rejoin it in their order.
            locked.sort_by_key(|job| job.river_id);
            let (jobs, changed) = divide(locked, change);
            for job in jobs {
                apply(transaction, job, change).await?;
            }
            Ok(changed)
        })
        .await
    }

    /// Cancels a job that is not running. One that has ended does not change.
    pub(in crate::jobs::database) async fn cancel_waiting(
        &self,
        connection: &mut SqliteConnection,
        river_id: i64,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(CANCEL).bind(river_id).execute(connection).await.map(drop)
    }

    pub(super) async fn put_aside(&self, claim: &Claim, kind: &str) -> Result<bool, StoreError> {
        let put = self.transaction(async |transaction| {
            let put = sqlx::query(PUT_ASIDE).bind(claim.river_id).bind(claim.attempt).bind(&*claim.client);
            let put = put.bind(claim.attempted_at).bind(kind).bind(PAUSED_QUEUE);
            put.execute(&mut **transaction).await.map(|done| done.rows_affected() > 0)
        });
        put.await?.map_err(store_error)
    }

    pub(super) async fn move_back(&self) -> Result<Vec<String>, StoreError> {
        let is_needed = self.read(async |connection| {
            sqlx::query_scalar::<_, i64>(RESUMED).bind(PAUSED_QUEUE).bind(1).fetch_optional(connection).await
        });
        if is_needed.await?.is_none() {
            return Ok(Vec::new()); // without a transaction, because this is asked all the time
        }
        let moved = self.transaction(async |transaction| {
            sqlx::query_scalar(MOVE_BACK).bind(PAUSED_QUEUE).bind(MAX_MOVED).fetch_all(&mut **transaction).await
        });
        moved.await?.map_err(store_error)
    }
}

async fn apply(connection: &mut SqliteConnection, job: i64, change: Change) -> Result<(), sqlx::Error> {
    match change {
        Change::Retry => {
            sqlx::query(RETRY).bind(job).execute(&mut *connection).await?;
            sqlx::query(REOPEN).bind(job).execute(connection).await?;
        }
        Change::Cancel => {
            sqlx::query(REQUEST_CANCEL).bind(job).execute(&mut *connection).await?;
            sqlx::query(CANCEL).bind(job).execute(connection).await?;
        }
        Change::Discard => {
            let describe = sqlx::query(DESCRIBE_DISCARD).bind(job).bind(DISCARDED_CLASS).bind(DISCARDED_MESSAGE);
            describe.execute(&mut *connection).await?;
            sqlx::query(DISCARD).bind(job).execute(connection).await?;
        }
        Change::Reschedule(due_at) => {
            let due_at = i64::try_from(due_at.as_millis()).unwrap_or(i64::MAX);
            let reschedule = sqlx::query(RESCHEDULE).bind(job).bind(due_at).bind(IMMEDIATE_MILLIS);
            reschedule.execute(&mut *connection).await?;
            sqlx::query(SHOW_DUE).bind(job).execute(connection).await?;
        }
    }
    Ok(())
}

fn locked_job(row: &sqlx::sqlite::SqliteRow) -> Result<LockedJob, sqlx::Error> {
    Ok(LockedJob {
        river_id: row.try_get(0)?,
        id: record_id(row.try_get(1)?).ok_or_else(|| sqlx::Error::Decode("invalid task id".into()))?,
        attempt: row.try_get(2)?,
        state: row.try_get(3)?,
        record_state: row.try_get(4)?,
        queue: row.try_get(5)?,
    })
}

const FIND: &str = "
SELECT job.id, task.id, job.attempt, job.state, task.state, job.queue
FROM tower_offload_task AS task JOIN river_job AS job ON job.id = task.river_id WHERE task.id = $1";

/// Nothing of the earlier attempts is left that the next end would keep. The steps of a job that
/// has succeeded run again; those of another one are done.
const RETRY: &str = concat!(
    "UPDATE river_job SET state = 'available', finalized_at = NULL, scheduled_at = ",
    now!(),
    ", max_attempts = max(max_attempts, attempt + 1), metadata = jsonb_remove(",
    json_or!("metadata", "{}"),
    ", '$.cancel_attempted_at', '$.output', CASE WHEN state = 'completed' THEN '$.\"tower_offload:steps\"' ELSE '$.output' END) \
     WHERE id = $1"
);
const REOPEN: &str = "
UPDATE tower_offload_task SET state = 0, attempt = job.attempt, max_attempts = job.max_attempts, due_at = NULL, progress = NULL,
    message = NULL, finished_at = NULL, cancel_requested_at = NULL, reason = NULL, result = NULL, error_class = NULL, error_message = NULL,
    error_detail = NULL, version = version + 1
FROM river_job AS job WHERE job.id = $1 AND river_id = $1";

const REQUEST_CANCEL: &str = "
UPDATE tower_offload_task SET cancel_requested_at = max(CAST(unixepoch('subsec') * 1000 AS INTEGER), created_at), version = version + 1
WHERE river_id = $1 AND state < 10 AND cancel_requested_at IS NULL";
/// Running jobs are cancelled by the maintenance, which finds the requests.
const CANCEL: &str = concat!(
    "UPDATE river_job SET state = 'cancelled', finalized_at = ",
    now!(),
    ", metadata = jsonb_set(",
    json_or!("metadata", "{}"),
    ", '$.cancel_attempted_at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) WHERE id = $1 AND state <> 'running' AND finalized_at IS NULL"
);

/// The trigger keeps the class and the message.
const DESCRIBE_DISCARD: &str = "
UPDATE tower_offload_task SET error_class = $2, error_message = $3, error_detail = NULL WHERE river_id = $1 AND state < 10";
const DISCARD: &str = concat!("UPDATE river_job SET state = 'discarded', finalized_at = ", now!(), " WHERE id = $1");

/// A job that waits for another one keeps its state.
const RESCHEDULE: &str = concat!(
    "UPDATE river_job SET scheduled_at = max(strftime('%Y-%m-%d %H:%M:%f', $2 / 1000.0, 'unixepoch'), ",
    now!(),
    "), state = CASE WHEN state = 'pending' THEN state \
     WHEN $2 <= unixepoch('subsec') * 1000 + $3 THEN 'available' WHEN state = 'retryable' THEN state ELSE 'scheduled' END \
     WHERE id = $1"
);
const SHOW_DUE: &str = concat!(
    "UPDATE tower_offload_task SET version = version + 1, due_at = (SELECT CASE WHEN scheduled_at > ",
    now!(),
    " THEN CAST(round(unixepoch(scheduled_at, 'subsec') * 1000) AS INTEGER) END FROM river_job WHERE id = $1) \
     WHERE river_id = $1 AND state = 0"
);

/// The job keeps its place among those that are due, but not that of its limit.
const PUT_ASIDE: &str = concat!(
    "UPDATE river_job SET attempt = max(attempt - 1, 0), queue = $6, state = CASE WHEN EXISTS (\
     SELECT 1 FROM tower_offload_sequence WHERE river_id = $1 AND is_limit = 1) THEN 'pending' ELSE 'available' END, metadata = CASE WHEN queue = $6 \
     THEN metadata ELSE jsonb_set(",
    json_or!("metadata", "{}"),
    ", '$.\"",
    queue_key!(),
    "\"', queue) END WHERE id = $1 AND kind = $5 AND state = 'running' AND attempt = $2 AND ",
    claimed_by!(),
    " = $3 AND ",
    claimed_at!(),
    " = $4 AND EXISTS (SELECT 1 FROM tower_offload_paused_kind WHERE kind = $5)"
);

/// Lists the states, so that the index of River's claims finds the jobs.
macro_rules! resumed {
    () => {
        "SELECT id FROM river_job WHERE queue = $1 \
         AND state IN ('available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled') \
         AND NOT EXISTS (SELECT 1 FROM tower_offload_paused_kind AS paused WHERE paused.kind = river_job.kind) LIMIT $2"
    };
}
const RESUMED: &str = resumed!();
macro_rules! earlier_queue {
    () => {
        concat!("(", json_or!("metadata", "{}"), ") ->> '$.\"", queue_key!(), "\"'")
    };
}
/// Other programs may have changed the name of the queue.
const MOVE_BACK: &str = concat!(
    "UPDATE river_job SET metadata = jsonb_remove(",
    json_or!("metadata", "{}"),
    ", '$.\"",
    queue_key!(),
    "\"'), queue = CASE WHEN length(",
    earlier_queue!(),
    ") BETWEEN 1 AND 64 AND ",
    earlier_queue!(),
    " NOT GLOB '*[^a-z0-9_|-]*' THEN ",
    earlier_queue!(),
    " ELSE 'default' END WHERE id IN (",
    resumed!(),
    ") RETURNING queue"
);
