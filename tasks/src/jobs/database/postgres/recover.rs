//! Recovers the jobs of processes that crashed or lost their lease.

use std::collections::BTreeSet;

use riverqueue::sqlx::{self, PgConnection, Row};

use super::{
    super::{
        Recovered,
        recovery::{
            CRASH_MESSAGE, LOST_CLASS, MAX_IMMEDIATE_DELAY, MAX_INTERRUPTIONS, MAX_LOSSES, MAX_RECOVERY_BATCH,
            SHUTDOWN_MESSAGE, lose_deleted, loss_delays, millis, record_id,
        },
    },
    PgTransaction, PostgresJobs,
};
use crate::{
    StoreError,
    jobs::{events, queue::Environment, running::Claim},
    store::sql::{postgres::lease::lock_expired, store_error},
};

impl PostgresJobs {
    /// Deletes the expired clients first. From then on a client that has no row has lost its lease,
    /// and notices it at its next renewal, however long its jobs take to recover.
    pub(in crate::jobs::database) async fn recover(
        &self,
        judge: Option<&str>,
        environment: &Environment,
    ) -> Result<(), StoreError> {
        if let Some(judge) = judge {
            let expire = sqlx::query(EXPIRE).bind(judge).bind(self.postgres.lease_millis());
            self.read(async |connection| expire.execute(connection).await).await?;
        }
        loop {
            let delays = loss_delays(environment.backoff);
            let recovered = self.transaction(async |transaction| recover_batch(transaction, &delays).await);
            let recovered = recovered.await?.map_err(store_error)?;
            events::recovered(&environment.counters, &recovered);
            environment.ended.send_recovered(&recovered);
            if recovered.len() < MAX_RECOVERY_BATCH {
                return Ok(());
            }
        }
    }

    pub(in crate::jobs::database) async fn note_interrupted(&self, claims: &[Claim]) -> Result<Vec<i64>, StoreError> {
        let (ids, times): (Vec<_>, Vec<_>) = claims.iter().map(|claim| (claim.river_id, claim.attempted_at)).unzip();
        let note = sqlx::query_as(NOTE_INTERRUPTED).bind(ids).bind(times).bind(MAX_INTERRUPTIONS);
        let noted: Vec<(i64, bool)> = self.read(async |connection| note.fetch_all(connection).await).await?;
        Ok(noted.into_iter().filter(|(_, is_refunded)| *is_refunded).map(|(id, _)| id).collect())
    }

    pub(in crate::jobs::database) async fn lose_deleted(&self) -> Result<u64, StoreError> {
        const LOSE: &str = lose_deleted!("(extract(epoch FROM clock_timestamp()) * 1000)::bigint", "greatest");
        self.read(async |connection| sqlx::query(LOSE).execute(connection).await.map(|done| done.rows_affected())).await
    }
}

/// Deletes the clients whose lease has expired, if the client `$1` may judge them. The rows are
/// locked while the condition holds, so a lease that is deleted can no longer be renewed.
const EXPIRE: &str =
    concat!("DELETE FROM tower_offload_client WHERE id IN (", lock_expired!("tower_offload_client", "id"), ")");
/// Requeues or ends running jobs of clients without a row. The attempt stays counted, so a job that
/// crashes its process ends after `max_attempts`, unless its record shows it as queued, since its
/// work has not begun then, or it is noted that a shutdown has interrupted it. Other programs write
/// the metadata too, so it may have any type.
///
/// The clients without a row are listed first, because Postgres checks the condition again after it
/// has locked a job, and only against the job's own columns: another client may have claimed it.
const RECOVER: &str = "
WITH claimed AS (
    SELECT job.id, job.attempt, job.max_attempts, task.id AS task_id, task.state IS NOT DISTINCT FROM 0 AS is_queued,
        coalesce(job.metadata #>> '{tower_offload:interrupted,claimed_at}' = (extract(epoch FROM job.attempted_at) * 1000000)::bigint::text,
            false) AS is_noted,
        CASE WHEN jsonb_typeof(job.metadata #> '{tower_offload:interrupted,count}') = 'number'
            THEN least(greatest((job.metadata #>> '{tower_offload:interrupted,count}')::numeric, 0), $7::bigint)::bigint ELSE 0 END AS interruptions,
        CASE WHEN jsonb_typeof(job.metadata -> 'tower_offload:lost') = 'number'
            THEN least(greatest((job.metadata ->> 'tower_offload:lost')::numeric, 0), $5::bigint)::bigint ELSE 0 END AS losses
    FROM river_job AS job
    LEFT JOIN tower_offload_task AS task ON task.river_id = job.id
    WHERE job.state = 'running' AND job.attempted_by[array_upper(job.attempted_by, 1)] = ANY(ARRAY(
        SELECT claimed.attempted_by[array_upper(claimed.attempted_by, 1)] FROM river_job AS claimed
        WHERE claimed.state = 'running' AND claimed.attempted_by[array_upper(claimed.attempted_by, 1)] LIKE 'to-%'
        EXCEPT SELECT id FROM tower_offload_client))
    ORDER BY job.id LIMIT $1 FOR UPDATE OF job SKIP LOCKED
), lost AS (
    SELECT *, is_interrupted OR is_queued AS is_refunded, CASE WHEN is_noted THEN $8::text ELSE $4::text END AS message FROM (
        SELECT *, is_noted AND interruptions < $7 AND max_attempts > 1 AS is_interrupted FROM claimed
    ) AS claimed
), delayed AS (
    SELECT lost.*, CASE WHEN is_refunded THEN 0 ELSE ($2::bigint[])[losses + 1] END AS delay FROM lost
), explained AS (
    UPDATE tower_offload_task AS task SET error_class = $3, error_message = lost.message, error_detail = NULL
    FROM lost WHERE task.river_id = lost.id AND task.state = 1 AND NOT lost.is_refunded
)
UPDATE river_job AS job SET
    state = CASE WHEN job.metadata ? 'cancel_attempted_at' THEN 'cancelled'
        WHEN job.attempt >= job.max_attempts AND NOT lost.is_refunded THEN 'discarded'
        WHEN lost.delay <= $6::bigint THEN 'available' ELSE 'retryable' END::river_job_state,
    attempt = CASE WHEN lost.is_refunded THEN greatest(job.attempt - 1, 0) ELSE job.attempt END,
    finalized_at = CASE WHEN job.metadata ? 'cancel_attempted_at' OR job.attempt >= job.max_attempts AND NOT lost.is_refunded
        THEN clock_timestamp() END,
    scheduled_at = CASE WHEN job.metadata ? 'cancel_attempted_at' OR job.attempt >= job.max_attempts AND NOT lost.is_refunded
        THEN job.scheduled_at ELSE clock_timestamp() + lost.delay * interval '1 millisecond' END,
    errors = CASE WHEN lost.is_refunded THEN job.errors ELSE array_append(coalesce(job.errors, '{}'), jsonb_build_object(
        'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
        'attempt', job.attempt, 'error', lost.message, 'trace', '')) END,
    metadata = CASE WHEN lost.is_interrupted THEN jsonb_set(job.metadata, '{tower_offload:interrupted,count}', to_jsonb(lost.interruptions + 1))
        WHEN lost.is_refunded THEN job.metadata
        ELSE job.metadata || jsonb_build_object('tower_offload:lost', lost.losses + 1) END
FROM delayed AS lost WHERE job.id = lost.id
RETURNING job.id, job.kind, job.state::text, job.queue, lost.attempt, lost.is_refunded, lost.task_id, lost.is_noted";
/// Notes in the metadata of running jobs that a shutdown interrupts their attempts. Returns `true`
/// for an attempt that does not count: its job has several, and fewer than `$3` did not count
/// already. The recovery counts the interruption. Rows that River is completing are skipped: two
/// statements that wait for each other's rows could deadlock.
const NOTE_INTERRUPTED: &str = "
WITH running AS (
    SELECT job.id, claim.attempted_at,
        CASE WHEN jsonb_typeof(job.metadata #> '{tower_offload:interrupted,count}') = 'number'
            THEN least(greatest((job.metadata #>> '{tower_offload:interrupted,count}')::numeric, 0), $3::bigint)::bigint ELSE 0 END AS count
    FROM river_job AS job JOIN unnest($1::bigint[], $2::bigint[]) AS claim(id, attempted_at) ON claim.id = job.id
    WHERE job.state = 'running'
        AND (extract(epoch FROM job.attempted_at) * 1000000)::bigint = claim.attempted_at
    FOR UPDATE OF job SKIP LOCKED
)
UPDATE river_job AS job SET metadata = job.metadata || jsonb_build_object('tower_offload:interrupted',
    jsonb_build_object('claimed_at', running.attempted_at, 'count', running.count))
FROM running WHERE job.id = running.id RETURNING job.id, job.max_attempts > 1 AND running.count < $3";
const NOTIFY: &str = "
SELECT pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', queue)::text)
FROM unnest($1::text[]) AS queue";

/// Recovers a batch of jobs. Each batch takes three round trips to the server.
async fn recover_batch(transaction: &mut PgTransaction<'_>, delays: &[i64]) -> Result<Vec<Recovered>, sqlx::Error> {
    let connection: &mut PgConnection = transaction;
    let recover =
        sqlx::query(RECOVER).bind(MAX_RECOVERY_BATCH as i64).bind(delays).bind(LOST_CLASS).bind(CRASH_MESSAGE);
    let recover = recover
        .bind(MAX_LOSSES as i64)
        .bind(millis(MAX_IMMEDIATE_DELAY))
        .bind(MAX_INTERRUPTIONS)
        .bind(SHUTDOWN_MESSAGE);
    let rows = recover.fetch_all(&mut *connection).await?;
    let mut queues = BTreeSet::new();
    let mut recovered = Vec::with_capacity(rows.len());
    for row in &rows {
        let (queue, is_refunded): (String, bool) = (row.try_get(3)?, row.try_get(5)?);
        queues.insert(queue.clone());
        recovered.push(Recovered {
            id: record_id(row.try_get(6)?),
            river_id: row.try_get(0)?,
            kind: row.try_get(1)?,
            queue,
            attempt: row.try_get(4)?,
            is_counted: !is_refunded,
            is_shutdown: row.try_get(7)?,
            state: row.try_get(2)?,
        });
    }
    if !queues.is_empty() {
        sqlx::query(NOTIFY).bind(Vec::from_iter(queues)).execute(connection).await?;
    }
    Ok(recovered)
}
