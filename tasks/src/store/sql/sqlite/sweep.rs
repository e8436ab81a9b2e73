use sqlx::{Row, SqliteConnection};

use crate::{
    Timestamp,
    store::{
        Retention, Swept,
        retention::MAX_CLOCK_DIFFERENCE,
        sql::{
            MAX_SWEEP, max_tombstones,
            row::{integer, millis},
        },
    },
};

/// Finds the last record to evict. All records that ended before it are evicted too, whether they
/// exceed the maximum age or the maximum number.
const LAST_TO_EVICT: &str = "
SELECT finished_at, id FROM (
    SELECT finished_at, id FROM tower_offload_task WHERE state >= 10 AND (finished_at < $1 OR (finished_at, id) <= (
        SELECT finished_at, id FROM tower_offload_task WHERE state >= 10 ORDER BY finished_at DESC, id DESC LIMIT 1 OFFSET $2))
    ORDER BY finished_at, id LIMIT $3)
ORDER BY finished_at DESC, id DESC LIMIT 1";
const ADD_TOMBSTONES: &str = "
INSERT OR REPLACE INTO tower_offload_tombstone (id, owner, expires_at)
SELECT id, owner, $3 FROM tower_offload_task WHERE state >= 10 AND (finished_at, id) <= ($1, $2)";
const EVICT: &str = "DELETE FROM tower_offload_task WHERE state >= 10 AND (finished_at, id) <= ($1, $2)";
/// Ids of records that ended before the clock was set back, so far in the future that they are at
/// the end of the order. At most as many as exceed the maximum number.
macro_rules! excess_of_the_future {
    () => {
        "SELECT id FROM tower_offload_task WHERE state >= 10 AND finished_at > $1 ORDER BY finished_at, id \
         LIMIT min($3, max(0, (SELECT count(*) FROM tower_offload_task WHERE state >= 10) - $2))"
    };
}
const IS_SET_BACK: &str = "SELECT EXISTS (SELECT 1 FROM tower_offload_task WHERE state >= 10 AND finished_at > $1)";
const ADD_TOMBSTONES_OF_THE_FUTURE: &str = concat!(
    "INSERT OR REPLACE INTO tower_offload_tombstone (id, owner, expires_at) \
     SELECT id, owner, $4 FROM tower_offload_task WHERE id IN (",
    excess_of_the_future!(),
    ")"
);
const EVICT_OF_THE_FUTURE: &str = concat!("DELETE FROM tower_offload_task WHERE id IN (", excess_of_the_future!(), ")");
const DELETE_TOMBSTONES: &str = "
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
    let max_records = integer(retention.max_records as u64);
    let expires_at = millis(now.after(retention.tombstone_ttl));
    let future = millis(now.after(MAX_CLOCK_DIFFERENCE));
    if sqlx::query_scalar(IS_SET_BACK).bind(future).fetch_one(&mut *connection).await? {
        let add = sqlx::query(ADD_TOMBSTONES_OF_THE_FUTURE).bind(future).bind(max_records).bind(MAX_SWEEP);
        add.bind(expires_at).execute(&mut *connection).await?;
        let evict = sqlx::query(EVICT_OF_THE_FUTURE).bind(future).bind(max_records).bind(MAX_SWEEP);
        swept.evicted = evict.execute(&mut *connection).await?.rows_affected();
    }
    let last = sqlx::query(LAST_TO_EVICT).bind(millis(now.before(retention.max_age))).bind(max_records).bind(MAX_SWEEP);
    if let Some(last) = last.fetch_optional(&mut *connection).await? {
        let (finished_at, id): (i64, Vec<u8>) = (last.try_get(0)?, last.try_get(1)?);
        let add = sqlx::query(ADD_TOMBSTONES).bind(finished_at).bind(&id).bind(expires_at);
        add.execute(&mut *connection).await?;
        swept.evicted +=
            sqlx::query(EVICT).bind(finished_at).bind(&id).execute(&mut *connection).await?.rows_affected();
    }
    let delete = sqlx::query(DELETE_TOMBSTONES).bind(millis(now)).bind(max_tombstones(retention)).bind(MAX_SWEEP);
    swept.forgotten = delete.execute(connection).await?.rows_affected();
    swept.more = swept.evicted.max(swept.forgotten) >= MAX_SWEEP as u64;
    Ok(swept)
}
