//! Statements of leases, which only the server's clock times. See [`crate::lease`] for the rule.
//!
//! The order of the steps that end an epoch: its row is deleted first, and then its records are
//! marked as lost, in batches. A record whose epoch has no row is lost, so any process can finish
//! what another one has begun. Writes lock the row of their epoch, so no record is added in
//! between.

use sqlx::{PgConnection, Row};

use crate::store::sql::MAX_SWEEP;

/// Renews the lease `$1` of `$2` milliseconds, even after it has expired: no process has ended it
/// while the row exists.
macro_rules! renew_lease {
    ($table:literal, $key:literal) => {
        concat!(
            "UPDATE ", $table, " SET expires_at = clock_timestamp() + $2 * interval '1 millisecond', \
             steady_since = CASE WHEN expires_at BETWEEN clock_timestamp() + $2 * interval '0.75 milliseconds' \
             AND clock_timestamp() + $2 * interval '1 millisecond' THEN steady_since ELSE clock_timestamp() END WHERE ",
            $key, " = $1"
        )
    };
}
#[cfg_attr(not(feature = "river"), allow(unused_imports, reason = "for job queues"))]
#[cfg(feature = "river")]
pub(crate) use renew_lease;

/// Locks the expired leases of others, if the owner of the lease `$1` of `$2` milliseconds may
/// judge them.
///
/// Skips a lease whose owner writes. Postgres checks the condition again after it has locked a row,
/// so a lease that was just renewed is not returned, and one that is returned can no longer be
/// renewed.
macro_rules! lock_expired {
    ($table:literal, $key:literal) => {
        concat!(
            "SELECT other.",
            $key,
            " FROM ",
            $table,
            " AS other \
             WHERE other.expires_at <= clock_timestamp() AND other.",
            $key,
            " <> $1 AND EXISTS (\
             SELECT 1 FROM ",
            $table,
            " AS own WHERE own.",
            $key,
            " = $1 \
             AND own.expires_at BETWEEN clock_timestamp() + $2 * interval '0.75 milliseconds' \
             AND clock_timestamp() + $2 * interval '1 millisecond' \
             AND own.steady_since <= clock_timestamp() - $2 * interval '1 millisecond') \
             ORDER BY other.",
            $key,
            " FOR UPDATE OF other SKIP LOCKED"
        )
    };
}
#[cfg_attr(not(feature = "river"), allow(unused_imports, reason = "for job queues"))]
#[cfg(feature = "river")]
pub(crate) use lock_expired;

/// Begins an epoch with the name `$1` at `$2`, and a lease of `$3` milliseconds.
pub(super) const BEGIN: &str = "
INSERT INTO tower_offload_process (name, started_at, expires_at)
VALUES ($1, $2, clock_timestamp() + $3 * interval '1 millisecond') RETURNING epoch";
pub(super) const RENEW: &str = renew_lease!("tower_offload_process", "epoch");
/// Ends the epoch `$1`.
pub(super) const END: &str = "DELETE FROM tower_offload_process WHERE epoch = $1";

const LOCK_EXPIRED: &str = lock_expired!("tower_offload_process", "epoch");
const END_ALL: &str = "DELETE FROM tower_offload_process WHERE epoch = ANY($1)";
/// Epochs of tasks are greater than 0, which is the epoch of jobs.
const LOSE: &str = "
UPDATE tower_offload_task AS task SET state = 14, reason = 'process_lost', version = task.version + 1,
    finished_at = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, task.started_at, task.created_at)
WHERE task.state < 10 AND task.id = ANY(ARRAY(
    SELECT id FROM tower_offload_task WHERE state < 10 AND epoch > 0
        AND NOT EXISTS (SELECT 1 FROM tower_offload_process AS process WHERE process.epoch = tower_offload_task.epoch)
    LIMIT $1 FOR UPDATE SKIP LOCKED))";

/// Ends the expired epochs of others, if this epoch may judge them.
pub(super) async fn end_expired(connection: &mut PgConnection, own: i64, lease_millis: i64) -> Result<(), sqlx::Error> {
    let expired = sqlx::query(LOCK_EXPIRED).bind(own).bind(lease_millis).fetch_all(&mut *connection).await?;
    let epochs = expired.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    if !epochs.is_empty() {
        sqlx::query(END_ALL).bind(epochs).execute(connection).await?;
    }
    Ok(())
}

/// Marks a batch of records whose epoch has ended as lost. Returns their number, and whether there
/// may be more.
pub(super) async fn lose_batch(connection: &mut PgConnection) -> Result<(u64, bool), sqlx::Error> {
    let lost = sqlx::query(LOSE).bind(MAX_SWEEP).execute(connection).await?.rows_affected();
    Ok((lost, lost >= MAX_SWEEP as u64))
}
