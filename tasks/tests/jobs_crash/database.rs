use sqlx::{AssertSqlSafe, Connection, FromRow, postgres::PgRow, sqlite::SqliteRow};

use super::databases::{OnFile, OnServer};

/// A database of either kind, used by the programs and inspected by the tests.
pub(crate) enum TestDatabase {
    Sqlite(OnFile),
    Postgres(OnServer),
}

/// A row of either kind of database.
pub(crate) trait AnyRow: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}
impl<T> AnyRow for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl TestDatabase {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(file) => file.url(),
            Self::Postgres(server) => server.url(),
        }
    }

    pub(crate) async fn rows<T: AnyRow>(&self, query: &str) -> Vec<T> {
        let query = AssertSqlSafe(query.to_owned());
        match self {
            Self::Sqlite(file) => {
                let mut connection = file.connect().await;
                let rows = sqlx::query_as(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows
            }
            Self::Postgres(server) => {
                let mut connection = server.connect().await;
                let rows = sqlx::query_as(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows
            }
        }
    }

    pub(crate) async fn number(&self, query: &str) -> i64 {
        self.rows::<(i64,)>(query).await[0].0
    }
}
