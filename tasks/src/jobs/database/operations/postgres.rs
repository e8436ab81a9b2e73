use std::collections::HashSet;

use riverqueue::sqlx::{self, PgConnection, Row};

use super::{
    Changed, DISCARDED_CLASS, DISCARDED_MESSAGE, IMMEDIATE_MILLIS, LockedJob, MAX_MOVED, PAUSED_QUEUE, divide,
    queue_key,
};
use crate::{
    OperationError, StoreError, TaskId,
    jobs::{
        database::{postgres::PostgresJobs, recovery::record_id},
        running::Claim,
    },
    operation::Change,
};

impl PostgresJobs {
    pub(super) async fn change_jobs(
        &self,
        ids: &[TaskId],
        change: Change,
    ) -> Result<Result<Changed, sqlx::Error>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| &id.as_bytes()[..]).collect();
        self.transaction(async |transaction| {
            let rows = sqlx::query(LOCK).bind(ids).fetch_all(&mut **transaction).await?;
            let mut locked = rows.iter().map(locked_job).collect::<Result<Vec<_>, _>>()?;
            let mut gone = Vec::new();
            if change == Change::Retry {
                // The sweep may have deleted them.
                let records: Vec<_> = locked.iter().map(|job| job.river_id).collect();
                let records = sqlx::query_scalar::<_, i64>(LOCK_RECORDS).bind(records);
                let kept: HashSet<_> = records.fetch_all(&mut **transaction).await?.into_iter().collect();
                (locked, gone) = locked.into_iter().partition(|job| kept.contains(&job.river_id));
            }
            let (jobs, mut changed) = divide(locked, change);
            changed.changes.refused.extend(gone.iter().map(|job| (job.id, OperationError::unknown())));
            if jobs.is_empty() {
                return Ok(changed);
            }
            match change {
                Change::Retry => {
                    sqlx::query(RETRY).bind(&jobs).execute(&mut **transaction).await?;
                    sqlx::query(REOPEN).bind(&jobs).execute(&mut **transaction).await?;
                }
                Change::Cancel => {
                    sqlx::query(REQUEST_CANCEL).bind(&jobs).execute(&mut **transaction).await?;
                    sqlx::query(CANCEL).bind(&jobs).execute(&mut **transaction).await?;
                }
                Change::Discard => {
                    let describe = sqlx::query(DESCRIBE_DISCARD).bind(&jobs).bind(DISCARDED_CLASS);
                    describe.bind(DISCARDED_MESSAGE).execute(&mut **transaction).await?;
                    sqlx::query(DISCARD).bind(&jobs).execute(&mut **transaction).await?;
                }
                Change::Reschedule(due_at) => {
                    let due_at = i64::try_from(due_at.as_millis()).unwrap_or(i64::MAX);
                    let reschedule = sqlx::query(RESCHEDULE).bind(&jobs).bind(due_at).bind(IMMEDIATE_MILLIS);
                    reschedule.execute(&mut **transaction).await?;
                    sqlx::query(SHOW_DUE).bind(&jobs).execute(&mut **transaction).await?;
                }
            }
            let queues: Vec<_> = changed.queues.iter().map(String::as_str).collect();
            if !queues.is_empty() {
                sqlx::query(NOTIFY).bind(queues).execute(&mut **transaction).await?;
            }
            Ok(changed)
        })
        .await
    }

    /// Cancels a locked job that is not running. One that has ended does not change.
    pub(in crate::jobs::database) async fn cancel_waiting(
        &self,
        connection: &mut PgConnection,
        river_id: i64,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(CANCEL).bind(vec![river_id]).execute(connection).await.map(drop)
    }

    pub(super) async fn put_aside(&self, claim: &Claim, kind: &str) -> Result<bool, StoreError> {
        self.read(async |connection| {
            let put = sqlx::query_scalar::<_, i64>(PUT_ASIDE).bind(claim.river_id).bind(claim.attempt);
            let put = put.bind(&*claim.client).bind(claim.attempted_at).bind(kind).bind(PAUSED_QUEUE);
            Ok(put.fetch_optional(connection).await?.is_some())
        })
        .await
    }

    pub(super) async fn move_back(&self) -> Result<Vec<String>, StoreError> {
        self.read(async |connection| {
            sqlx::query_scalar(MOVE_BACK).bind(PAUSED_QUEUE).bind(MAX_MOVED).fetch_all(connection).await
        })
        .await
    }
}

fn locked_job(row: &sqlx::postgres::PgRow) -> Result<LockedJob, sqlx::Error> {
    Ok(LockedJob {
        river_id: row.try_get(0)?,
        id: record_id(row.try_get(1)?).ok_or_else(|| sqlx::Error::Decode("invalid task id".into()))?,
        attempt: row.try_get(2)?,
        state: row.try_get(3)?,
        record_state: row.try_get(4)?,
        queue: row.try_get(5)?,
    })
}

/// In the order of their ids, so that two operations on the same jobs do not deadlock.
const LOCK: &str = "
SELECT job.id, task.id, job.attempt::bigint, job.state::text, task.state, job.queue
FROM river_job AS job JOIN tower_offload_task AS task ON task.river_id = job.id
WHERE task.id = ANY($1) ORDER BY job.id FOR UPDATE OF job";
/// A record of a job that has ended. All jobs are locked before, since a job is locked before its
/// record. The sweep skips locked records.
const LOCK_RECORDS: &str =
    "SELECT river_id FROM tower_offload_task WHERE river_id = ANY($1) ORDER BY river_id FOR UPDATE";

/// Nothing of the earlier attempts is left that the next end would keep. The steps of a job that
/// has succeeded run again; those of another one are done.
const RETRY: &str = "
UPDATE river_job SET state = 'available', finalized_at = NULL, scheduled_at = clock_timestamp(),
    max_attempts = greatest(max_attempts, attempt + 1), metadata = CASE WHEN state = 'completed' THEN metadata - 'tower_offload:steps' ELSE metadata END - 'cancel_attempted_at' - 'output'
WHERE id = ANY($1)";
const REOPEN: &str = "
UPDATE tower_offload_task AS task SET state = 0, attempt = job.attempt, max_attempts = job.max_attempts, due_at = NULL, progress = NULL,
    message = NULL, finished_at = NULL, cancel_requested_at = NULL, reason = NULL, result = NULL, error_class = NULL, error_message = NULL,
    error_detail = NULL, retained_since = NULL, version = task.version + 1
FROM river_job AS job WHERE job.id = ANY($1) AND task.river_id = job.id";

const REQUEST_CANCEL: &str = "
UPDATE tower_offload_task SET cancel_requested_at = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, created_at),
    version = version + 1
WHERE river_id = ANY($1) AND state < 10 AND cancel_requested_at IS NULL";
/// Running jobs are cancelled by the maintenance, which finds the requests.
const CANCEL: &str = "
UPDATE river_job SET state = 'cancelled', finalized_at = clock_timestamp(), metadata = jsonb_set(metadata, '{cancel_attempted_at}',
    to_jsonb(to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')))
WHERE id = ANY($1) AND state <> 'running' AND finalized_at IS NULL";

/// The trigger keeps the class and the message.
const DESCRIBE_DISCARD: &str = "
UPDATE tower_offload_task SET error_class = $2, error_message = $3, error_detail = NULL WHERE river_id = ANY($1) AND state < 10";
const DISCARD: &str = "UPDATE river_job SET state = 'discarded', finalized_at = clock_timestamp() WHERE id = ANY($1)";

/// A job that waits for another one keeps its state.
const RESCHEDULE: &str = "
UPDATE river_job SET scheduled_at = greatest(to_timestamp($2 / 1000.0), clock_timestamp()),
    state = CASE WHEN state = 'pending' THEN state
        WHEN to_timestamp($2 / 1000.0) <= clock_timestamp() + $3 * interval '1 millisecond' THEN 'available'
        WHEN state = 'retryable' THEN state ELSE 'scheduled' END
WHERE id = ANY($1)";
const SHOW_DUE: &str = "
UPDATE tower_offload_task AS task SET version = task.version + 1, due_at = CASE WHEN job.scheduled_at > clock_timestamp()
    THEN (extract(epoch FROM job.scheduled_at) * 1000)::bigint END
FROM river_job AS job WHERE job.id = ANY($1) AND task.river_id = job.id AND task.state = 0";

const NOTIFY: &str = "
SELECT pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', queue)::text) FROM unnest($1::text[]) AS queue";

/// Locks the row of the paused kind, so that it is either resumed later, and the job moved back, or
/// is not paused. The job keeps its place among those that are due, but not that of its limit.
const PUT_ASIDE: &str = concat!(
    "WITH paused AS (SELECT kind FROM tower_offload_paused_kind WHERE kind = $5 FOR KEY SHARE) \
     UPDATE river_job AS job SET attempt = greatest(job.attempt - 1, 0), queue = $6, state = CASE WHEN EXISTS (\
     SELECT 1 FROM tower_offload_sequence WHERE river_id = $1 AND is_limit) THEN 'pending' ELSE 'available' END::river_job_state, \
     metadata = CASE WHEN job.queue = $6 THEN job.metadata ELSE job.metadata || jsonb_build_object('",
    queue_key!(),
    "', job.queue) END FROM paused WHERE job.id = $1 AND job.kind = paused.kind AND job.state = 'running' AND job.attempt = $2 \
     AND job.attempted_by[array_upper(job.attempted_by, 1)] = $3 \
     AND (extract(epoch FROM job.attempted_at) * 1000000)::bigint = $4 RETURNING job.id"
);

/// Lists the states, so that the index of River's claims finds the jobs. Other programs may have
/// changed the name of the queue.
const MOVE_BACK: &str = concat!(
    "WITH resumed AS (SELECT id FROM river_job AS job WHERE queue = $1 \
     AND state IN ('available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled') \
     AND NOT EXISTS (SELECT 1 FROM tower_offload_paused_kind AS paused WHERE paused.kind = job.kind) \
     ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED), moved AS (\
     UPDATE river_job AS job SET metadata = job.metadata - '",
    queue_key!(),
    "', queue = CASE WHEN job.metadata ->> '",
    queue_key!(),
    "' ~ '^[a-z0-9_|-]{1,64}$' THEN job.metadata ->> '",
    queue_key!(),
    "' ELSE 'default' END FROM resumed WHERE job.id = resumed.id RETURNING job.queue), notified AS (\
     SELECT count(pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', queue)::text)) AS sent \
     FROM (SELECT DISTINCT queue FROM moved) AS queues) \
     SELECT moved.queue FROM moved, notified"
);
