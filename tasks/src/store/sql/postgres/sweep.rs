use sqlx::{PgConnection, Row};

use crate::{
    Timestamp,
    store::{
        Retention, Swept,
        sql::{
            database::{SWEPT_AT_ONCE, integer, max_tombstones},
            row::millis,
        },
    },
};

/// Those that ended first go, by age and by count. `SKIP LOCKED`: every process of the database sweeps.
const EVICT: &str = "
WITH doomed AS (
    SELECT id FROM tower_offload_task WHERE state >= 10 AND (finished_at < $1 OR (finished_at, id) <= (
        SELECT finished_at, id FROM tower_offload_task WHERE state >= 10 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET $2))
    ORDER BY finished_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tower_offload_task AS task USING doomed WHERE task.id = doomed.id RETURNING task.id, task.owner
)
INSERT INTO tower_offload_tombstone (id, owner, expires_at) SELECT id, owner, $4 FROM gone ON CONFLICT (id) DO NOTHING";
const FORGET: &str = "
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
        .bind(millis(now.before(retention.max_age())))
        .bind(integer(retention.kept() as u64))
        .bind(SWEPT_AT_ONCE)
        .bind(millis(now.after(retention.tombstone_age())));
    swept.evicted = evict.execute(&mut *connection).await?.rows_affected();
    let forget = sqlx::query(FORGET).bind(millis(now)).bind(max_tombstones(retention)).bind(SWEPT_AT_ONCE);
    swept.forgotten = forget.execute(connection).await?.rows_affected();
    swept.more = swept.evicted.max(swept.forgotten) >= SWEPT_AT_ONCE as u64;
    Ok(swept)
}

/// Locked, and with that looked at again: an epoch that writes or was just renewed is not among them.
const EXPIRED: &str = "
SELECT epoch FROM tower_offload_process WHERE expires_at <= clock_timestamp() ORDER BY epoch FOR UPDATE SKIP LOCKED";

/// The records of processes whose lease ran out, and in the same transaction the processes: an epoch whose row is there has lost nothing.
pub(super) async fn lose_expired(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let expired = sqlx::query(EXPIRED).fetch_all(&mut *connection).await?;
    let epochs = expired.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    if epochs.is_empty() { Ok(0) } else { lose(connection, epochs, None).await }
}

const LOSE: &str = "
UPDATE tower_offload_task SET state = 14, reason = 'process_lost', version = version + 1,
    finished_at = greatest(coalesce($2, (extract(epoch FROM clock_timestamp()) * 1000)::bigint), started_at, created_at)
WHERE epoch = ANY($1) AND state < 10";

/// Ends these epochs, at that time or now. Their rows must be locked.
pub(super) async fn lose(
    connection: &mut PgConnection,
    epochs: Vec<i64>,
    at: Option<Timestamp>,
) -> Result<u64, sqlx::Error> {
    let lost = sqlx::query(LOSE).bind(&epochs).bind(at.map(millis)).execute(&mut *connection).await?.rows_affected();
    sqlx::query("DELETE FROM tower_offload_process WHERE epoch = ANY($1)").bind(&epochs).execute(connection).await?;
    Ok(lost)
}
