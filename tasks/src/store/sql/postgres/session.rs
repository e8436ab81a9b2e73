use sqlx::{PgConnection, Row};

use crate::{StoreError, TaskId, Timestamp, store::sql::error::store_error_at};

/// Refuses a database that cannot store every text, and a proxy that shares sessions.
pub(super) async fn check(first: &mut PgConnection, second: &mut PgConnection, server: &str) -> Result<(), StoreError> {
    let failed = |error| store_error_at(server, error);
    let (encoding, database) = encoding(first).await.map_err(failed)?;
    if encoding != "UTF8" {
        return Err(StoreError::other(format!(
            "the database {database} on {server} has the encoding {encoding}, in which some texts cannot be stored: use a \
             database that was created with `ENCODING 'UTF8' TEMPLATE template0`"
        )));
    }
    if share_session(first, second).await? {
        return Err(StoreError::other(format!(
            "{server} is a proxy that shares sessions: give PgBouncer `pool_mode = session`, or connect to the server itself"
        )));
    }
    Ok(())
}

/// Returns the encoding and the name of the database.
async fn encoding(connection: &mut PgConnection) -> Result<(String, String), sqlx::Error> {
    let rows = sqlx::raw_sql("SELECT current_setting('server_encoding'), current_database()::text");
    let rows = rows.fetch_all(connection).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Returns `true` if a setting of one session can be read in the other. A proxy that pools
/// transactions lends the session that was used last, which is that of the first connection.
///
/// Leases, migrations and job queues rely on the state of their sessions: settings, locks and
/// `LISTEN`.
async fn share_session(first: &mut PgConnection, second: &mut PgConnection) -> Result<bool, StoreError> {
    // Random, because an earlier process may have left a value in the session.
    let mark = TaskId::generate(Timestamp::default()).map_err(StoreError::other)?;
    let set = format!("SELECT set_config('tower_offload.session', '{mark}', false)");
    let read = "SELECT current_setting('tower_offload.session', true)";
    let shared = async {
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(first).await?;
        let rows = sqlx::raw_sql(read).fetch_all(second).await?;
        let found: Option<String> = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        Ok(found.is_some_and(|found| found == mark.to_string()))
    };
    shared.await.map_err(crate::store::sql::store_error)
}
