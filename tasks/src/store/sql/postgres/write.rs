use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, Row};

use super::columns::{bind, input};
use crate::{
    TaskId,
    store::{
        Epoch, Op, Written,
        sql::row::{Stored, columns, millis, task_id},
    },
};

/// Returns the statement that waits for an earlier batch of the epoch.
///
/// Its client may have given up while its commit waited for the disk or for a standby, and it is
/// committed later: until then this batch would not find its records, and would report them as
/// unknown. A statement of its own, because the later ones must see what was committed meanwhile.
/// Epochs that share a lock wait for each other. It is sent together with `BEGIN`, so it costs no
/// round trip.
pub(super) fn lock_writes(epoch: Epoch) -> String {
    let key = i64::from(epoch) % i64::from(i32::MAX);
    format!("SELECT pg_advisory_xact_lock({LOCK_CLASS}, {key})")
}

/// Identifies the locks of epochs. The number is arbitrary.
const LOCK_CLASS: i32 = 746_110_294;

/// Executes one statement for all records, since each takes a round trip to the server.
pub(super) async fn write(
    connection: &mut PgConnection,
    epoch: Epoch,
    batch: &[Op],
) -> Result<Vec<Written>, sqlx::Error> {
    let (mut accepts, mut updates, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for op in batch {
        match op {
            Op::Accept(record) => accepts.push(&**record),
            Op::RequestCancel { id, now } => requests.push((*id, millis(*now))),
            Op::Update(record) => updates.push(&**record),
        }
    }
    let write = bind(bind(sqlx::query(WRITE).bind(i64::from(epoch)), &accepts), &updates);
    let row = write.fetch_one(&mut *connection).await?;
    let (is_current, updated): (bool, Vec<Vec<u8>>) = (row.try_get(0)?, row.try_get(1)?);
    let id = |bytes| task_id(bytes).map_err(|error| sqlx::Error::Decode(error.into()));
    let mut done = updated.into_iter().map(id).collect::<Result<HashSet<_>, _>>()?;
    if !requests.is_empty() {
        let (ids, times): (Vec<_>, Vec<_>) = requests.iter().map(|(id, now)| (id.as_bytes().to_vec(), *now)).unzip();
        done.extend(changed(sqlx::query(REQUEST_CANCEL).bind(ids).bind(times), connection).await?);
    }
    let rest: Vec<_> = batch.iter().filter(|op| !matches!(op, Op::Accept(_))).map(Op::id).collect();
    let rest: Vec<_> = rest.into_iter().filter(|id| !done.contains(id)).collect();
    let unchanged = if rest.is_empty() { HashMap::new() } else { stored(connection, &rest).await? };
    Ok(batch.iter().map(|op| result(op, epoch, is_current, &done, &unchanged)).collect())
}

/// Returns the result of an operation. `unchanged` has the records that no statement changed.
fn result(
    op: &Op,
    epoch: Epoch,
    is_current: bool,
    done: &HashSet<TaskId>,
    unchanged: &HashMap<TaskId, Stored>,
) -> Written {
    let is_fenced = !matches!(op, Op::RequestCancel { .. });
    match (op, unchanged.get(&op.id())) {
        (Op::Update(record), Some(stored)) if stored.is_final_of(record) => Written::Done,
        _ if is_fenced && !is_current => Written::Fenced,
        (Op::Accept(_), _) => Written::Done,
        _ if done.contains(&op.id()) => Written::Done,
        (_, Some(stored)) if stored.is_final() || is_fenced && stored.owner != epoch => Written::Fenced,
        (_, Some(_)) => Written::Done,
        (_, None) => Written::Unknown,
    }
}

/// Accepts and updates records of the epoch `$1`. Returns `true` if the epoch has not ended, and the
/// ids of the records that were updated. No id is in both.
///
/// Locks the epoch until the commit, so that no other process marks its records as lost. The lock
/// conflicts with the end of the epoch, but not with a renewal.
const WRITE: &str = concat!(
    "WITH current AS MATERIALIZED (SELECT 1 FROM tower_offload_process WHERE epoch = $1 FOR KEY SHARE), \
     accepted AS (INSERT INTO tower_offload_task (epoch, ",
    columns!(),
    ") SELECT $1, ",
    columns!(),
    " FROM ",
    input!(),
    " WHERE EXISTS (SELECT 1 FROM current) \
     AND NOT EXISTS (SELECT 1 FROM tower_offload_tombstone WHERE tower_offload_tombstone.id = input.id) ON CONFLICT (id) DO NOTHING), \
     updated AS (UPDATE tower_offload_task AS task SET name = input.name, owner = input.owner, state = input.state, attempt = input.attempt, \
     max_attempts = input.max_attempts, progress = input.progress, message = input.message, version = input.version, \
     created_at = input.created_at, started_at = input.started_at, finished_at = input.finished_at, \
     cancel_requested_at = coalesce(task.cancel_requested_at, input.cancel_requested_at), reason = input.reason, \
     result = input.result, error_class = input.error_class, error_message = input.error_message, error_detail = input.error_detail \
     FROM ",
    input!(second),
    " WHERE EXISTS (SELECT 1 FROM current) AND task.id = input.id AND task.epoch = $1 AND task.state < 10 \
     AND task.version <= input.version RETURNING task.id) \
     SELECT EXISTS (SELECT 1 FROM current), ARRAY(SELECT id FROM updated)"
);

const REQUEST_CANCEL: &str = "
UPDATE tower_offload_task AS task SET cancel_requested_at = greatest(input.now, task.created_at), version = task.version + 1
FROM unnest($1::bytea[], $2::bigint[]) AS input(id, now)
WHERE task.id = input.id AND task.state < 10 AND task.cancel_requested_at IS NULL RETURNING task.id";

/// Executes a statement that returns the ids of the records that it changed.
async fn changed(
    query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    connection: &mut PgConnection,
) -> Result<Vec<TaskId>, sqlx::Error> {
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| task_id(row.try_get(0)?).map_err(|error| sqlx::Error::Decode(error.into()))).collect()
}

async fn stored(connection: &mut PgConnection, ids: &[TaskId]) -> Result<HashMap<TaskId, Stored>, sqlx::Error> {
    let ids: Vec<_> = ids.iter().map(|id| id.as_bytes().to_vec()).collect();
    let query = sqlx::query("SELECT id, epoch, state, version FROM tower_offload_task WHERE id = ANY($1)").bind(ids);
    let rows = query.fetch_all(connection).await?;
    let entry = |row: &sqlx::postgres::PgRow| {
        let id = task_id(row.try_get(0)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok((id, Stored::new(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))
    };
    rows.iter().map(entry).collect()
}
