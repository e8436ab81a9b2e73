//! Jobs whose process is gone. River's own way is to wait for an hour: nothing in its tables says that a process lives. Here something does:
//! on SQLite the lock on the file, on Postgres a lease.
//!
//! A job is taken back in one statement that asks once more whether it is still in that attempt. Touched are state, times, errors and
//! metadata; the attempt stays counted, so a job that kills its process comes to its end.

use std::{collections::BTreeSet, time::Duration};

use riverqueue::{Error, sqlx};
use sqlx::{PgConnection, Postgres, Row, Sqlite, SqliteConnection, Transaction};

use crate::jobs::Backoff;

/// What stands in the status of a job whose last attempt ended so.
const CLASS: &str = "process_lost";
const MESSAGE: &str = "the process that ran it is gone";

/// So many in one transaction: each of them is some ways to the server and back, and there are seconds for all.
const AT_ONCE: usize = 200;
/// As River does: what waits longer is made available by its leader, and there may be none for a while.
const SOON: Duration = Duration::from_secs(5);

/// One whose process is gone.
struct Lost {
    river_id: i64,
    attempt: i16,
    times: i64,
}

impl Lost {
    /// After the first time it may have been any job of that process: at once. From the second on it may be this one's fault.
    fn delay(&self, backoff: Backoff) -> i64 {
        let failures = u32::try_from(self.times).unwrap_or(u32::MAX);
        let delay = if failures == 0 { Duration::ZERO } else { backoff.delay_after(failures) };
        i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
    }
}

const FIND_SQLITE: &str = "
SELECT id, attempt, coalesce(metadata ->> '$.\"tower_offload:lost\"', 0) FROM river_job WHERE state = 'running' ORDER BY id LIMIT $1";
const EXPLAIN: &str = "
UPDATE tower_offload_task SET error_class = $2, error_message = $3, error_detail = NULL WHERE river_id = $1 AND state = 1";
const RECOVER_SQLITE: &str = "
UPDATE river_job SET
    state = CASE WHEN metadata -> '$.cancel_attempted_at' IS NOT NULL THEN 'cancelled' WHEN attempt >= max_attempts THEN 'discarded'
        WHEN $1 <= $5 THEN 'available' ELSE 'retryable' END,
    finalized_at = CASE WHEN metadata -> '$.cancel_attempted_at' IS NOT NULL OR attempt >= max_attempts
        THEN strftime('%Y-%m-%d %H:%M:%f', 'now') END,
    scheduled_at = CASE WHEN metadata -> '$.cancel_attempted_at' IS NOT NULL OR attempt >= max_attempts THEN scheduled_at
        ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('+%.3f seconds', $1 / 1000.0)) END,
    errors = jsonb_insert(coalesce(errors, jsonb('[]')), '$[#]',
        jsonb_object('at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'attempt', attempt, 'error', $4, 'trace', '')),
    metadata = jsonb_set(metadata, '$.\"tower_offload:lost\"', coalesce(metadata ->> '$.\"tower_offload:lost\"', 0) + 1)
WHERE id = $2 AND state = 'running' AND attempt = $3";

/// Some of the jobs that run in the file: whoever holds its lock is the only process. Also nobody leads.
pub(super) async fn recover_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    backoff: Backoff,
) -> Result<Recovered, Error> {
    let connection: &mut SqliteConnection = transaction;
    let rows = sqlx::query(FIND_SQLITE).bind(AT_ONCE as i64).fetch_all(&mut *connection).await?;
    let recovered = Recovered { is_all: rows.len() < AT_ONCE };
    for row in rows {
        let lost = Lost { river_id: row.try_get(0)?, attempt: row.try_get(1)?, times: row.try_get(2)? };
        take_back_sqlite(connection, &lost, backoff).await?;
    }
    sqlx::query("DELETE FROM river_leader").execute(connection).await?;
    Ok(recovered)
}

async fn take_back_sqlite(connection: &mut SqliteConnection, lost: &Lost, backoff: Backoff) -> Result<(), Error> {
    sqlx::query(EXPLAIN).bind(lost.river_id).bind(CLASS).bind(MESSAGE).execute(&mut *connection).await?;
    let recover =
        sqlx::query(RECOVER_SQLITE).bind(lost.delay(backoff).min(MOST)).bind(lost.river_id).bind(lost.attempt);
    recover.bind(MESSAGE).bind(millis(SOON)).execute(connection).await?;
    Ok(())
}

/// What was done in one transaction.
pub(super) struct Recovered {
    /// Whether that was all.
    pub(super) is_all: bool,
}

/// A job that this client of ours should be working on, as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::jobs) struct Claim {
    pub(in crate::jobs) river_id: i64,
    pub(in crate::jobs) attempt: i16,
}

const CLAIMS_SQLITE: &str = "
SELECT id, attempt FROM river_job WHERE state = 'running' AND attempted_by ->> '$[#-1]' = $1";
const CLAIMS_POSTGRES: &str = "
SELECT id, attempt FROM river_job WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1";

macro_rules! claims {
    ($($name:ident, $query:expr, $connection:ty;)*) => {
        $(pub(super) async fn $name(connection: &mut $connection, client: &str) -> Result<Vec<Claim>, sqlx::Error> {
            let rows = sqlx::query($query).bind(client).fetch_all(connection).await?;
            rows.iter().map(|row| Ok(Claim { river_id: row.try_get(0)?, attempt: row.try_get(1)? })).collect()
        })*
    };
}

claims! {
    claims_sqlite, CLAIMS_SQLITE, SqliteConnection;
    claims_postgres, CLAIMS_POSTGRES, PgConnection;
}

/// Claims that nobody works on. River has made them, and never had the answer.
pub(super) async fn take_back_claims_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    claims: &[Claim],
    backoff: Backoff,
) -> Result<(), Error> {
    for Claim { river_id, attempt } in claims {
        take_back_sqlite(transaction, &Lost { river_id: *river_id, attempt: *attempt, times: 0 }, backoff).await?;
    }
    Ok(())
}

pub(super) async fn take_back_claims_postgres(
    transaction: &mut Transaction<'_, Postgres>,
    claims: &[Claim],
    client: &str,
    backoff: Backoff,
) -> Result<(), Error> {
    let mut queues = BTreeSet::new();
    for Claim { river_id, attempt } in claims {
        let lost = Lost { river_id: *river_id, attempt: *attempt, times: 0 };
        queues.extend(take_back_postgres(transaction, &lost, client, backoff).await?);
    }
    wake(transaction, queues).await
}

/// Some three centuries would be past what SQLite's dates can tell; a year is enough.
const MOST: i64 = 365 * 24 * 3600 * 1000;

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Locked, and with that looked at again: one that was just renewed is not among them, and one that is can be renewed no more.
const EXPIRED: &str = "
SELECT id FROM tower_offload_client WHERE expires_at <= clock_timestamp() ORDER BY id FOR UPDATE SKIP LOCKED";
/// Also those of clients that are not known at all: a job that was claimed in the moment in which its client was given up.
const FIND_POSTGRES: &str = "
SELECT job.id, job.attempt, coalesce((job.metadata ->> 'tower_offload:lost')::bigint, 0),
    job.attempted_by[array_upper(job.attempted_by, 1)] FROM river_job AS job
LEFT JOIN tower_offload_client AS client ON client.id = job.attempted_by[array_upper(job.attempted_by, 1)]
WHERE job.state = 'running' AND job.attempted_by[array_upper(job.attempted_by, 1)] LIKE 'to-%'
    AND (client.id IS NULL OR client.id = ANY($2))
ORDER BY job.id LIMIT $1 FOR UPDATE OF job SKIP LOCKED";
const RECOVER_POSTGRES: &str = "
UPDATE river_job AS job SET
    state = CASE WHEN job.metadata ? 'cancel_attempted_at' THEN 'cancelled' WHEN job.attempt >= job.max_attempts THEN 'discarded'
        WHEN $1::bigint <= $5::bigint THEN 'available' ELSE 'retryable' END::river_job_state,
    finalized_at = CASE WHEN job.metadata ? 'cancel_attempted_at' OR job.attempt >= job.max_attempts THEN clock_timestamp() END,
    scheduled_at = CASE WHEN job.metadata ? 'cancel_attempted_at' OR job.attempt >= job.max_attempts THEN job.scheduled_at
        ELSE clock_timestamp() + $1::bigint * interval '1 millisecond' END,
    errors = array_append(coalesce(job.errors, '{}'), jsonb_build_object(
        'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
        'attempt', job.attempt, 'error', $4::text, 'trace', '')),
    metadata = job.metadata || jsonb_build_object('tower_offload:lost', coalesce((job.metadata ->> 'tower_offload:lost')::bigint, 0) + 1)
WHERE job.id = $2 AND job.state = 'running' AND job.attempt = $3 AND job.attempted_by[array_upper(job.attempted_by, 1)] = $6
RETURNING job.queue";
const WAKE: &str = "
SELECT pg_notify(concat(current_schema(), '.river_insert'), json_build_object('queue', $1::text)::text)";
const FORGET: &str = "DELETE FROM tower_offload_client WHERE id = ANY($1)";

/// Some jobs of clients whose lease is over, and with the last of them the clients: one whose row is there has lost nothing.
///
/// Unless `may_expire`, only jobs of clients that are not known at all: see [`Steady`](super::steady::Steady).
pub(super) async fn recover_postgres(
    transaction: &mut Transaction<'_, Postgres>,
    may_expire: bool,
    backoff: Backoff,
) -> Result<Recovered, Error> {
    let connection: &mut PgConnection = transaction;
    let expired: Vec<String> =
        if may_expire { sqlx::query_scalar(EXPIRED).fetch_all(&mut *connection).await? } else { Vec::new() };
    let rows = sqlx::query(FIND_POSTGRES).bind(AT_ONCE as i64).bind(&expired).fetch_all(&mut *connection).await?;
    let recovered = Recovered { is_all: rows.len() < AT_ONCE };
    let mut queues = BTreeSet::new();
    for row in rows {
        let lost = Lost { river_id: row.try_get(0)?, attempt: row.try_get(1)?, times: row.try_get(2)? };
        queues.extend(take_back_postgres(connection, &lost, row.try_get(3)?, backoff).await?);
    }
    wake(connection, queues).await?;
    if recovered.is_all {
        sqlx::query(FORGET).bind(&expired).execute(connection).await?;
    }
    Ok(recovered)
}

/// The queue in which it waits again, if it was still lost.
async fn take_back_postgres(
    connection: &mut PgConnection,
    lost: &Lost,
    client: &str,
    backoff: Backoff,
) -> Result<Option<String>, Error> {
    sqlx::query(EXPLAIN).bind(lost.river_id).bind(CLASS).bind(MESSAGE).execute(&mut *connection).await?;
    let recover = sqlx::query_scalar(RECOVER_POSTGRES).bind(lost.delay(backoff).min(MOST)).bind(lost.river_id);
    let recover = recover.bind(lost.attempt).bind(MESSAGE).bind(millis(SOON)).bind(client);
    Ok(recover.fetch_optional(connection).await?)
}

/// Tells clients that jobs wait there, as River does when it inserts some.
async fn wake(connection: &mut PgConnection, queues: BTreeSet<String>) -> Result<(), Error> {
    for queue in queues {
        sqlx::query(WAKE).bind(queue).execute(&mut *connection).await?;
    }
    Ok(())
}
