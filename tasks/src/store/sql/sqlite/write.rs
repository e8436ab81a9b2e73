use sqlx::{Row, Sqlite, SqliteConnection, query::Query, sqlite::SqliteArguments};

use crate::{
    Record, TaskId, Timestamp,
    store::{
        Epoch, Op, Written,
        sql::row::{Stored, Values, columns, millis},
    },
};

/// Executes one prepared statement per operation. That is fast, because SQLite runs in this
/// process.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    epoch: Epoch,
    batch: &[Op],
) -> Result<Vec<Written>, sqlx::Error> {
    let is_current = sqlx::query(super::IS_CURRENT).bind(i64::from(epoch));
    let is_current = is_current.fetch_optional(&mut *connection).await?.is_some();
    let mut written = Vec::with_capacity(batch.len());
    for op in batch {
        written.push(match op {
            Op::RequestCancel { id, now } => request_cancel(connection, *id, *now).await?,
            Op::Accept(_) if !is_current => Written::Fenced,
            Op::Accept(record) => accept(connection, epoch, record).await?,
            Op::Update(record) => update(connection, epoch, is_current, record).await?,
        });
    }
    Ok(written)
}

const ACCEPT: &str = concat!(
    "INSERT INTO tower_offload_task (epoch, ",
    columns!(),
    ") SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19 \
     WHERE NOT EXISTS (SELECT 1 FROM tower_offload_tombstone WHERE id = $2) ON CONFLICT (id) DO NOTHING"
);

async fn accept(connection: &mut SqliteConnection, epoch: Epoch, record: &Record) -> Result<Written, sqlx::Error> {
    execute(ACCEPT, connection, epoch, record).await?;
    Ok(Written::Done)
}

const UPDATE: &str = "
UPDATE tower_offload_task SET name = $3, owner = $4, state = $5, attempt = $6, max_attempts = $7, progress = $8, message = $9, version = $10,
    created_at = $11, started_at = $12, finished_at = $13, cancel_requested_at = coalesce(cancel_requested_at, $14), reason = $15,
    result = $16, error_class = $17, error_message = $18, error_detail = $19
WHERE id = $2 AND epoch = $1 AND state < 10 AND version <= $10";

async fn update(
    connection: &mut SqliteConnection,
    epoch: Epoch,
    is_current: bool,
    record: &Record,
) -> Result<Written, sqlx::Error> {
    if is_current && execute(UPDATE, connection, epoch, record).await? > 0 {
        return Ok(Written::Done);
    }
    Ok(match stored(connection, record.id).await? {
        Some(stored) if stored.is_final_of(record) => Written::Done,
        _ if !is_current => Written::Fenced,
        Some(stored) if stored.is_final() || stored.owner != epoch => Written::Fenced,
        Some(_) => Written::Done,
        None => Written::Unknown,
    })
}

/// Returns the number of rows that the statement changed.
async fn execute(
    statement: &'static str,
    connection: &mut SqliteConnection,
    epoch: Epoch,
    record: &Record,
) -> Result<u64, sqlx::Error> {
    let values = Values::from(record);
    let query = bind(sqlx::query(statement).bind(i64::from(epoch)), &values);
    Ok(query.execute(connection).await?.rows_affected())
}

/// Binds the [`columns!`] of a record.
pub(crate) fn bind<'q>(
    query: Query<'q, Sqlite, SqliteArguments>,
    values: &'q Values<'q>,
) -> Query<'q, Sqlite, SqliteArguments> {
    query
        .bind(values.id)
        .bind(&*values.name)
        .bind(values.owner.as_deref())
        .bind(values.state)
        .bind(values.attempt)
        .bind(values.max_attempts)
        .bind(values.progress)
        .bind(values.message.as_deref())
        .bind(values.version)
        .bind(values.created_at)
        .bind(values.started_at)
        .bind(values.finished_at)
        .bind(values.cancel_requested_at)
        .bind(values.reason)
        .bind(values.result)
        .bind(values.error_class.as_deref())
        .bind(values.error_message.as_deref())
        .bind(values.error_detail)
}

const REQUEST_CANCEL: &str = "
UPDATE tower_offload_task SET cancel_requested_at = max($2, created_at), version = version + 1
WHERE id = $1 AND state < 10 AND cancel_requested_at IS NULL";

async fn request_cancel(connection: &mut SqliteConnection, id: TaskId, now: Timestamp) -> Result<Written, sqlx::Error> {
    let request = sqlx::query(REQUEST_CANCEL).bind(&id.as_bytes()[..]).bind(millis(now));
    if request.execute(&mut *connection).await?.rows_affected() > 0 {
        return Ok(Written::Done);
    }
    Ok(match stored(connection, id).await? {
        Some(stored) if stored.is_final() => Written::Fenced,
        Some(_) => Written::Done,
        None => Written::Unknown,
    })
}

async fn stored(connection: &mut SqliteConnection, id: TaskId) -> Result<Option<Stored>, sqlx::Error> {
    let query = sqlx::query("SELECT epoch, state, version FROM tower_offload_task WHERE id = $1");
    let Some(row) = query.bind(&id.as_bytes()[..]).fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some(Stored::new(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
}
