//! The numbers of the records.

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::row::state;
use crate::{
    StoreError, Timestamp,
    operation::{MAX_COUNTED, MAX_SAMPLES, SummaryBuilder},
    store::Summary,
};

/// Counts at most `$2` records by name, queue and state, and the records of each state. `$1` is the
/// current time. At most 300 groups of a state are returned, those with the most records.
macro_rules! counts {
    ($greatest:literal) => {
        concat!(
            "SELECT name, queue, state, tasks, oldest, CAST(total AS bigint) FROM (\
             SELECT name, queue, state, count(*) AS tasks, \
             min(CASE WHEN state = 0 AND coalesce(due_at, 0) <= $1 THEN ",
            $greatest,
            "(created_at, coalesce(started_at, 0), coalesce(due_at, 0)) END) AS oldest, \
             sum(count(*)) OVER (PARTITION BY state) AS total, \
             row_number() OVER (PARTITION BY state ORDER BY count(*) DESC, name, queue) AS place FROM (\
             SELECT name, queue, state, created_at, started_at, due_at FROM tower_offload_task ORDER BY id DESC LIMIT $2\
             ) AS newest GROUP BY name, queue, state) AS grouped WHERE place <= 300"
        )
    };
}
pub(super) use counts;

/// Returns the durations of at most `$2` finished records, of the newest `$1` records.
pub(super) const SAMPLES: &str = "
SELECT name, queue, CASE WHEN attempt = 1 THEN started_at - created_at END, finished_at - started_at FROM (
    SELECT id, name, queue, state, attempt, created_at, started_at, finished_at FROM tower_offload_task ORDER BY id DESC LIMIT $1
) AS newest WHERE state >= 10 AND started_at IS NOT NULL AND finished_at IS NOT NULL ORDER BY id DESC LIMIT $2";

pub(super) const COUNTED: i64 = MAX_COUNTED as i64;
pub(super) const SAMPLED: i64 = MAX_SAMPLES as i64;

/// Builds the summary from the rows of both queries.
pub(super) fn summary<R>(counts: &[R], samples: &[R], now: Timestamp) -> Result<Summary, StoreError>
where
    R: Row,
    usize: ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut builder = SummaryBuilder::default();
    let mut known = Vec::new();
    let millis = |millis: Option<i64>| millis.and_then(|millis| u64::try_from(millis).ok());
    for row in counts {
        let number = |index| row.try_get::<i64, _>(index).map_err(StoreError::other);
        let Ok(state) = state(number(2)?) else { continue }; // of a newer version
        let count = |index| Ok::<_, StoreError>(u64::try_from(number(index)?).unwrap_or_default());
        if !known.contains(&state) {
            known.push(state);
            builder.add_total(state, count(5)?);
        }
        let name = row.try_get(0).map_err(StoreError::other)?;
        let queue = row.try_get(1).map_err(StoreError::other)?;
        let oldest = millis(row.try_get(4).map_err(StoreError::other)?);
        builder.add_group(name, queue, state, count(3)?, oldest.map(Timestamp::from_millis));
    }
    for row in samples {
        let name = row.try_get(0).map_err(StoreError::other)?;
        let queue = row.try_get(1).map_err(StoreError::other)?;
        let wait = millis(row.try_get(2).map_err(StoreError::other)?);
        builder.add_sample(name, queue, wait, millis(row.try_get(3).map_err(StoreError::other)?));
    }
    Ok(builder.build(now))
}
