use sqlx::{Row, SqliteConnection};

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

/// The last record that goes. Both by age and by count those go that ended first: all up to this one.
const LAST_TO_GO: &str = "
SELECT finished_at, id FROM (
    SELECT finished_at, id FROM tower_offload_task WHERE state >= 10 AND (finished_at < $1 OR (finished_at, id) <= (
        SELECT finished_at, id FROM tower_offload_task WHERE state >= 10 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET $2))
    ORDER BY finished_at, id LIMIT $3)
ORDER BY finished_at DESC, id DESC LIMIT 1";
const BURY: &str = "
INSERT OR REPLACE INTO tower_offload_tombstone (id, owner, expires_at)
SELECT id, owner, $3 FROM tower_offload_task WHERE state >= 10 AND (finished_at, id) <= ($1, $2)";
const EVICT: &str = "DELETE FROM tower_offload_task WHERE state >= 10 AND (finished_at, id) <= ($1, $2)";
const FORGET: &str = "
DELETE FROM tower_offload_tombstone WHERE id IN (
    SELECT id FROM tower_offload_tombstone WHERE expires_at <= $1 OR (expires_at, id) <= (
        SELECT expires_at, id FROM tower_offload_tombstone ORDER BY expires_at DESC, id DESC LIMIT 1 OFFSET $2)
    LIMIT $3)";

pub(super) async fn sweep(
    connection: &mut SqliteConnection,
    now: Timestamp,
    retention: &Retention,
) -> Result<Swept, sqlx::Error> {
    let mut swept = Swept::default();
    let last = sqlx::query(LAST_TO_GO)
        .bind(millis(now.before(retention.max_age())))
        .bind(integer(retention.kept() as u64))
        .bind(SWEPT_AT_ONCE);
    if let Some(last) = last.fetch_optional(&mut *connection).await? {
        let (finished_at, id): (i64, Vec<u8>) = (last.try_get(0)?, last.try_get(1)?);
        let bury = sqlx::query(BURY).bind(finished_at).bind(&id).bind(millis(now.after(retention.tombstone_age())));
        bury.execute(&mut *connection).await?;
        swept.evicted = sqlx::query(EVICT).bind(finished_at).bind(&id).execute(&mut *connection).await?.rows_affected();
    }
    let forget = sqlx::query(FORGET).bind(millis(now)).bind(max_tombstones(retention)).bind(SWEPT_AT_ONCE);
    swept.forgotten = forget.execute(connection).await?.rows_affected();
    swept.more = swept.evicted.max(swept.forgotten) >= SWEPT_AT_ONCE as u64;
    Ok(swept)
}
