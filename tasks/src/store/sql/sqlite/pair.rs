//! Rows of durable jobs: each has the number of its job in River's table.

use sqlx::SqliteConnection;

use super::write::bind;
use crate::{
    Record, StoreError,
    store::sql::row::{Values, columns, record},
};

const INSERT: &str = concat!(
    "INSERT INTO tower_offload_task (epoch, river_id, ",
    columns!(),
    ") VALUES (0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
     ON CONFLICT (river_id) DO NOTHING"
);

/// A job that has a row keeps that one.
pub(crate) async fn insert(connection: &mut SqliteConnection, pairs: &[(i64, &Record)]) -> Result<(), sqlx::Error> {
    for (river_id, record) in pairs {
        bind(sqlx::query(INSERT).bind(river_id), &Values::of(record)).execute(&mut *connection).await?;
    }
    Ok(())
}

const FIND: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE river_id = $1");

/// The record of that job.
pub(crate) async fn find(
    connection: &mut SqliteConnection,
    river_id: i64,
) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
    let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
    Ok(row.as_ref().map(record))
}
