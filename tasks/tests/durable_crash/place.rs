use sqlx::{AssertSqlSafe, Connection, FromRow, postgres::PgRow, sqlite::SqliteRow};

use super::databases::{OnFile, OnServer};

/// A database of either kind, for the programs and to look into.
pub(crate) enum Place {
    File(OnFile),
    Server(OnServer),
}

/// A row, whatever database it is of.
pub(crate) trait AnyRow: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}
impl<T> AnyRow for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl Place {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::File(file) => file.url(),
            Self::Server(server) => server.url(),
        }
    }

    pub(crate) async fn rows<T: AnyRow>(&self, query: &str) -> Vec<T> {
        let query = AssertSqlSafe(query.to_owned());
        match self {
            Self::File(file) => {
                let mut connection = file.connect().await;
                let rows = sqlx::query_as(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows
            }
            Self::Server(server) => {
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
