use sqlx::{PgConnection, Row};

use crate::{
    Timestamp,
    store::{
        Retention, Swept,
        sql::{
            MAX_SWEEP, max_tombstones,
            row::{integer, millis},
        },
    },
};

/// Evicts the records that ended first. Uses `SKIP LOCKED`, because all processes sweep the same
/// table.
const EVICT: &str = "
WITH doomed AS (
    SELECT id FROM tower_offload_task WHERE state >= 10 AND (finished_at < $1 OR (finished_at, id) <= (
        SELECT finished_at, id FROM tower_offload_task WHERE state >= 10 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET $2))
    ORDER BY finished_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tower_offload_task AS task USING doomed WHERE task.id = doomed.id RETURNING task.id, task.owner
)
INSERT INTO tower_offload_tombstone (id, owner, expires_at) SELECT id, owner, $4 FROM gone ON CONFLICT (id) DO NOTHING";
const DELETE_TOMBSTONES: &str = "
DELETE FROM tower_offload_tombstone WHERE id IN (
    SELECT id FROM tower_offload_tombstone WHERE expires_at <= $1 OR (expires_at, id) <= (
        SELECT expires_at, id FROM tower_offload_tombstone ORDER BY expires_at DESC, id DESC LIMIT 1 OFFSET $2)
    LIMIT $3 FOR UPDATE SKIP LOCKED)";

pub(super) async fn sweep(
    connection: &mut PgConnection,
    now: Timestamp,
    retention: &Retention,
) -> Result<Swept, sqlx::Error> {
    let mut swept = Swept { lost: lose_expired(connection).await?, ..Swept::default() };
    let evict = sqlx::query(EVICT)
        .bind(millis(now.before(retention.max_age)))
        .bind(integer(retention.max_records as u64))
        .bind(MAX_SWEEP)
        .bind(millis(now.after(retention.tombstone_ttl)));
    swept.evicted = evict.execute(&mut *connection).await?.rows_affected();
    let delete = sqlx::query(DELETE_TOMBSTONES).bind(millis(now)).bind(max_tombstones(retention)).bind(MAX_SWEEP);
    swept.forgotten = delete.execute(connection).await?.rows_affected();
    swept.more = swept.evicted.max(swept.forgotten) >= MAX_SWEEP as u64;
    Ok(swept)
}

/// Locks the epochs whose lease has expired. Skips an epoch that writes, and checks the condition
/// again after it has locked a row, so an epoch that was just renewed is not returned.
const EXPIRED: &str = "
SELECT epoch FROM tower_offload_process WHERE expires_at <= clock_timestamp() ORDER BY epoch FOR UPDATE SKIP LOCKED";

/// Marks the records of expired epochs as lost and deletes these epochs, in one transaction: while
/// the row of an epoch exists, none of its records is lost.
pub(super) async fn lose_expired(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let expired = sqlx::query(EXPIRED).fetch_all(&mut *connection).await?;
    let epochs = expired.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    if epochs.is_empty() { Ok(0) } else { lose(connection, epochs, None).await }
}

const LOSE: &str = "
UPDATE tower_offload_task SET state = 14, reason = 'process_lost', version = version + 1,
    finished_at = greatest(coalesce($2, (extract(epoch FROM clock_timestamp()) * 1000)::bigint), started_at, created_at)
WHERE epoch = ANY($1) AND state < 10";

/// Marks the records of these epochs as lost at `at`, or now, and deletes the epochs. The caller
/// has locked their rows.
pub(super) async fn lose(
    connection: &mut PgConnection,
    epochs: Vec<i64>,
    at: Option<Timestamp>,
) -> Result<u64, sqlx::Error> {
    let lost = sqlx::query(LOSE).bind(&epochs).bind(at.map(millis)).execute(&mut *connection).await?.rows_affected();
    sqlx::query("DELETE FROM tower_offload_process WHERE epoch = ANY($1)").bind(&epochs).execute(connection).await?;
    Ok(lost)
}
