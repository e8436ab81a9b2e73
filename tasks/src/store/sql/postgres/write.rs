use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, Row};

use super::columns::{bind, input};
use crate::{
    TaskId,
    store::{
        Epoch, Op, Written,
        sql::{
            group::Batch,
            row::{columns, millis, task_id},
        },
    },
};

/// All batches, in as few statements as keep their order: several of one epoch together, as long as no id comes twice.
pub(super) async fn write(connection: &mut PgConnection, batches: &[Batch]) -> Result<Vec<Vec<Written>>, sqlx::Error> {
    let mut all = Vec::new();
    let mut together: Vec<&Op> = Vec::new();
    let mut ids = HashSet::new();
    let mut epoch = None;
    for batch in batches {
        if epoch != Some(batch.epoch) || batch.ops.iter().any(|op| ids.contains(&op.id())) {
            if let Some(epoch) = epoch {
                all.extend(write_together(connection, epoch, &together).await?);
            }
            together.clear();
            ids.clear();
            epoch = Some(batch.epoch);
        }
        ids.extend(batch.ops.iter().map(Op::id));
        together.extend(&batch.ops);
    }
    if let Some(epoch) = epoch {
        all.extend(write_together(connection, epoch, &together).await?);
    }
    let mut all = all.into_iter();
    Ok(batches.iter().map(|batch| all.by_ref().take(batch.ops.len()).collect()).collect())
}

/// Held until the commit, so that nobody takes the records of an epoch for lost that is writing. Renewals pass it, the end of an epoch
/// does not.
const IS_CURRENT: &str = "SELECT 1 FROM tower_offload_process WHERE epoch = $1 FOR KEY SHARE";

async fn write_together(connection: &mut PgConnection, epoch: Epoch, ops: &[&Op]) -> Result<Vec<Written>, sqlx::Error> {
    let (mut accepts, mut updates, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for op in ops {
        match op {
            Op::Accept(record) => accepts.push(&**record),
            Op::RequestCancel { id, now } => requests.push((*id, millis(*now))),
            Op::Update(record) => updates.push(&**record),
        }
    }
    let is_current = sqlx::query(IS_CURRENT).bind(epoch.as_number()).fetch_optional(&mut *connection).await?.is_some();
    let mut done = HashSet::new();
    if is_current && !accepts.is_empty() {
        bind(sqlx::query(ACCEPT).bind(epoch.as_number()), &accepts).execute(&mut *connection).await?;
    }
    if is_current && !updates.is_empty() {
        done.extend(changed(bind(sqlx::query(UPDATE).bind(epoch.as_number()), &updates), connection).await?);
    }
    if !requests.is_empty() {
        let (ids, times): (Vec<_>, Vec<_>) = requests.iter().map(|(id, now)| (id.as_bytes().to_vec(), *now)).unzip();
        done.extend(changed(sqlx::query(REQUEST_CANCEL).bind(ids).bind(times), connection).await?);
    }
    let rest: Vec<_> = ops.iter().filter(|op| !matches!(op, Op::Accept(_))).map(|op| op.id()).collect();
    let rest: Vec<_> = rest.into_iter().filter(|id| !done.contains(id)).collect();
    let standing = if rest.is_empty() { HashMap::new() } else { standing(connection, &rest).await? };
    Ok(ops.iter().map(|op| became(op, epoch, is_current, &done, &standing)).collect())
}

fn became(
    op: &Op,
    epoch: Epoch,
    is_current: bool,
    done: &HashSet<TaskId>,
    standing: &HashMap<TaskId, (Epoch, bool)>,
) -> Written {
    let fences = !matches!(op, Op::RequestCancel { .. });
    match standing.get(&op.id()) {
        _ if fences && !is_current => Written::Fenced,
        _ if matches!(op, Op::Accept(_)) || done.contains(&op.id()) => Written::Done,
        Some((owner, is_final)) if *is_final || fences && *owner != epoch => Written::Fenced,
        Some(_) => Written::Done,
        None => Written::Unknown,
    }
}

const ACCEPT: &str = concat!(
    "INSERT INTO tower_offload_task (epoch, ",
    columns!(),
    ") SELECT $1, ",
    columns!(),
    " FROM ",
    input!(),
    " WHERE NOT EXISTS (SELECT 1 FROM tower_offload_tombstone WHERE tower_offload_tombstone.id = input.id) ON CONFLICT (id) DO NOTHING"
);

const UPDATE: &str = concat!(
    "UPDATE tower_offload_task AS task SET name = input.name, owner = input.owner, state = input.state, attempt = input.attempt, \
     max_attempts = input.max_attempts, progress = input.progress, message = input.message, version = input.version, \
     created_at = input.created_at, started_at = input.started_at, finished_at = input.finished_at, \
     cancel_requested_at = coalesce(task.cancel_requested_at, input.cancel_requested_at), reason = input.reason, \
     result = input.result, error_class = input.error_class, error_message = input.error_message, error_detail = input.error_detail \
     FROM ",
    input!(),
    " WHERE task.id = input.id AND task.epoch = $1 AND task.state < 10 AND task.version <= input.version RETURNING task.id"
);

const REQUEST_CANCEL: &str = "
UPDATE tower_offload_task AS task SET cancel_requested_at = greatest(input.now, task.created_at), version = task.version + 1
FROM unnest($1::bytea[], $2::bigint[]) AS input(id, now)
WHERE task.id = input.id AND task.state < 10 AND task.cancel_requested_at IS NULL RETURNING task.id";

async fn changed(
    query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    connection: &mut PgConnection,
) -> Result<Vec<TaskId>, sqlx::Error> {
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(|row| task_id(row.try_get(0)?).map_err(|error| sqlx::Error::Decode(error.into()))).collect()
}

/// Whose they are, and whether they are final.
async fn standing(
    connection: &mut PgConnection,
    ids: &[TaskId],
) -> Result<HashMap<TaskId, (Epoch, bool)>, sqlx::Error> {
    let ids: Vec<_> = ids.iter().map(|id| id.as_bytes().to_vec()).collect();
    let query = sqlx::query("SELECT id, epoch, state FROM tower_offload_task WHERE id = ANY($1)").bind(ids);
    let rows = query.fetch_all(connection).await?;
    let entry = |row: &sqlx::postgres::PgRow| {
        let id = task_id(row.try_get(0)?).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok((id, (Epoch::from_number(row.try_get(1)?), row.try_get::<i64, _>(2)? >= 10)))
    };
    rows.iter().map(entry).collect()
}
