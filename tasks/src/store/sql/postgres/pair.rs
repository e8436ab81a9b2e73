//! Rows of durable jobs: each has the number of its job in River's table.

use sqlx::PgConnection;

use super::columns::{bind, input};
use crate::{
    Record, StoreError,
    store::sql::row::{columns, record},
};

const INSERT: &str = concat!(
    "INSERT INTO tower_offload_task (epoch, river_id, ",
    columns!(),
    ") SELECT 0, job.river_id, ",
    columns!(),
    " FROM ",
    input!(),
    " JOIN unnest($1::bigint[], $2::bytea[]) AS job(river_id, task_id) ON job.task_id = input.id ON CONFLICT (river_id) DO NOTHING"
);

/// A job that has a row keeps that one.
pub(crate) async fn insert(connection: &mut PgConnection, pairs: &[(i64, &Record)]) -> Result<(), sqlx::Error> {
    let (jobs, records): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    bind(sqlx::query(INSERT).bind(jobs), &records).execute(connection).await?;
    Ok(())
}

const FIND: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE river_id = $1");

/// The record of that job.
pub(crate) async fn find(
    connection: &mut PgConnection,
    river_id: i64,
) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
    let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(record))
}
