//! Databases for tests. Each test has its own, which is deleted with the value.
#![allow(dead_code, reason = "no test binary uses all items")]

pub(crate) mod proxy;
pub(crate) mod server;

use std::path::PathBuf;

use sqlx::{Connection, PgConnection, SqliteConnection};

/// A database on the server that `DATABASE_URL` names.
pub(crate) struct OnServer {
    server: String,
    pub(crate) name: String,
}

impl OnServer {
    /// Creates a database. Returns `None`, and prints why, if there is no server.
    pub(crate) async fn fresh() -> Option<Self> {
        Self::fresh_with("").await
    }

    /// Creates a database with these options of `CREATE DATABASE`.
    pub(crate) async fn fresh_with(options: &str) -> Option<Self> {
        let Ok(server) = std::env::var("DATABASE_URL") else {
            tower_offload_tests::skip("DATABASE_URL is not set; .ci/run starts a Postgres server");
            return None;
        };
        let name = format!("tower_offload_{:016x}", random());
        let mut connection = PgConnection::connect(&server).await.unwrap();
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name} {options}"));
        sqlx::query(create).execute(&mut connection).await.unwrap();
        Some(Self { server, name })
    }

    pub(crate) fn url(&self) -> String {
        let (before, parameters) = self.server.split_once('?').unwrap_or((&self.server, ""));
        let (server, _) = before.rsplit_once('/').unwrap();
        format!("{server}/{}?{parameters}", self.name)
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }
}

impl Drop for OnServer {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let drop = async move {
            let mut connection = PgConnection::connect(&server).await.unwrap();
            let drop = sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
            sqlx::query(drop).execute(&mut connection).await.unwrap();
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || runtime().block_on(drop)).join().unwrap();
    }
}

/// A SQLite file in a directory of its own.
pub(crate) struct OnFile {
    directory: PathBuf,
}

impl OnFile {
    pub(crate) fn fresh() -> Self {
        let directory = std::env::temp_dir().join(format!("tower-offload-{:016x}", random()));
        std::fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.directory.join("tasks.db").display())
    }

    pub(crate) async fn connect(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url()).await.unwrap()
    }
}

impl Drop for OnFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn random() -> u64 {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    u64::from_ne_bytes(random)
}
