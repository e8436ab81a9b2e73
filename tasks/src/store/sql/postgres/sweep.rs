use std::time::Duration;

use sqlx::PgConnection;

use crate::store::{
    Retention, Swept,
    sql::{MAX_SWEEP, max_tombstones, row::integer},
};

/// Evicts the records that ended first, by the server's clock. Uses `SKIP LOCKED`, because all
/// processes sweep the same table.
const EVICT: &str = "
WITH doomed AS (
    SELECT id FROM tower_offload_task WHERE state >= 10 AND (
        retained_since < clock_timestamp() - $1 * interval '1 millisecond' OR (retained_since, id) <= (
            SELECT retained_since, id FROM tower_offload_task WHERE state >= 10
            ORDER BY retained_since DESC, id DESC LIMIT 1 OFFSET $2))
    ORDER BY retained_since, id LIMIT $3 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tower_offload_task AS task USING doomed WHERE task.id = doomed.id RETURNING task.id, task.owner
)
INSERT INTO tower_offload_tombstone (id, owner, expires_at)
SELECT id, owner, (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4 FROM gone ON CONFLICT (id) DO NOTHING";
/// Notes records that ended in the future, by more than clocks differ, as ended now. The server's
/// clock was set back, and the records that end from now on would be evicted before them.
const CORRECT: &str = "
UPDATE tower_offload_task SET retained_since = clock_timestamp() WHERE id IN (
    SELECT id FROM tower_offload_task WHERE state >= 10 AND retained_since > clock_timestamp() + interval '1 minute'
    LIMIT $1 FOR UPDATE SKIP LOCKED)";
const DELETE_TOMBSTONES: &str = "
DELETE FROM tower_offload_tombstone WHERE id IN (
    SELECT id FROM tower_offload_tombstone
    WHERE expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint OR (expires_at, id) <= (
        SELECT expires_at, id FROM tower_offload_tombstone ORDER BY expires_at DESC, id DESC LIMIT 1 OFFSET $1)
    LIMIT $2 FOR UPDATE SKIP LOCKED)";

pub(super) async fn sweep(connection: &mut PgConnection, retention: &Retention) -> Result<Swept, sqlx::Error> {
    let mut swept = Swept::default();
    let corrected = sqlx::query(CORRECT).bind(MAX_SWEEP).execute(&mut *connection).await?.rows_affected();
    let evict = sqlx::query(EVICT)
        .bind(bounded_millis(retention.max_age))
        .bind(integer(retention.max_records as u64))
        .bind(MAX_SWEEP)
        .bind(bounded_millis(retention.tombstone_ttl));
    swept.evicted = evict.execute(&mut *connection).await?.rows_affected();
    let delete = sqlx::query(DELETE_TOMBSTONES).bind(max_tombstones(retention)).bind(MAX_SWEEP);
    swept.forgotten = delete.execute(connection).await?.rows_affected();
    swept.more = swept.evicted.max(swept.forgotten).max(corrected) >= MAX_SWEEP as u64;
    Ok(swept)
}

/// Converts a duration to milliseconds that Postgres can subtract from the current time and add to
/// it: at most a thousand years.
fn bounded_millis(duration: Duration) -> i64 {
    const MAX: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
    integer(duration.min(MAX).as_millis() as u64)
}
