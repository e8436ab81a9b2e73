//! Rows of jobs in the task table. Each has the id of its job in River's table.

/// Inserts records of jobs. A job that has a row keeps it.
pub(super) mod postgres {
    use sqlx::PgConnection;

    use crate::{
        Record, StoreError,
        store::sql::{
            postgres::columns::{bind, input},
            row::{columns, record},
        },
    };

    const INSERT: &str = concat!(
        "INSERT INTO tower_offload_task (epoch, river_id, ",
        columns!(),
        ") SELECT 0, job.river_id, ",
        columns!(),
        " FROM ",
        input!(),
        " JOIN unnest($1::bigint[], $2::bytea[]) AS job(river_id, task_id) ON job.task_id = input.id \
         ON CONFLICT (river_id) DO NOTHING"
    );

    pub(in crate::jobs::river) async fn insert(
        connection: &mut PgConnection,
        pairs: &[(i64, &Record)],
    ) -> Result<(), sqlx::Error> {
        let (jobs, records): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        bind(sqlx::query(INSERT).bind(jobs), &records).execute(connection).await?;
        Ok(())
    }

    const FIND: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE river_id = $1");

    pub(in crate::jobs::river) async fn find(
        connection: &mut PgConnection,
        river_id: i64,
    ) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
        let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
        Ok(row.as_ref().map(record))
    }
}

/// Inserts records of jobs. A job that has a row keeps it.
pub(super) mod sqlite {
    use sqlx::SqliteConnection;

    use crate::{
        Record, StoreError,
        store::sql::{
            row::{Values, columns, record},
            sqlite::write::bind,
        },
    };

    const INSERT: &str = concat!(
        "INSERT INTO tower_offload_task (epoch, river_id, ",
        columns!(),
        ") VALUES (0, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
         ON CONFLICT (river_id) DO NOTHING"
    );

    pub(in crate::jobs::river) async fn insert(
        connection: &mut SqliteConnection,
        pairs: &[(i64, &Record)],
    ) -> Result<(), sqlx::Error> {
        for (river_id, record) in pairs {
            bind(sqlx::query(INSERT).bind(river_id), &Values::from(*record)).execute(&mut *connection).await?;
        }
        Ok(())
    }

    const FIND: &str = concat!("SELECT ", columns!(), " FROM tower_offload_task WHERE river_id = $1");

    pub(in crate::jobs::river) async fn find(
        connection: &mut SqliteConnection,
        river_id: i64,
    ) -> Result<Option<Result<Record, StoreError>>, sqlx::Error> {
        let row = sqlx::query(FIND).bind(river_id).fetch_optional(connection).await?;
        Ok(row.as_ref().map(record))
    }
}
