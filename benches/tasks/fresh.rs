//! A database with nothing in it for each run.

use std::{fs, path::PathBuf};

use sqlx::{Connection, PgConnection};
use tokio::runtime;

use crate::{BoxError, plan::Store};

/// Gone when this is dropped.
pub(crate) struct Fresh {
    name: String,
    place: Place,
}

enum Place {
    Directory(PathBuf),
    Nowhere,
    /// The URL of another database there.
    OnServer(String),
}

impl Fresh {
    /// `server` is any database on the Postgres where another one may be made.
    pub(crate) fn new(store: Store, server: Option<&str>) -> Result<Self, BoxError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let name = format!("tower_offload_bench_{:016x}", u64::from_ne_bytes(random));
        let place = match store {
            Store::Memory => Place::Nowhere,
            Store::Postgres => {
                let server = server.ok_or(NO_SERVER)?;
                execute(server, format!("CREATE DATABASE {name}"))?;
                Place::OnServer(server.to_owned())
            }
            Store::Sqlite => {
                let directory = std::env::temp_dir().join(&name);
                fs::create_dir(&directory)?;
                Place::Directory(directory)
            }
        };
        Ok(Self { name, place })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Of the database with that name, for who has the same environment: a URL may have a password in it, and everybody sees what a
/// program is started with. Empty for the store in memory.
pub(crate) fn url(store: Store, name: &str) -> Result<String, BoxError> {
    match store {
        Store::Memory => Ok(String::new()),
        Store::Postgres => {
            let server = std::env::var("DATABASE_URL").map_err(|_| NO_SERVER)?;
            let (before, parameters) = server.split_once('?').unwrap_or((&server, ""));
            let (address, _) = before.rsplit_once('/').ok_or("DATABASE_URL names no database")?;
            Ok(format!("{address}/{name}?{parameters}"))
        }
        Store::Sqlite => Ok(format!("sqlite:{}", std::env::temp_dir().join(name).join("tasks.db").display())),
    }
}

const NO_SERVER: &str = "DATABASE_URL names no Postgres";

impl Drop for Fresh {
    fn drop(&mut self) {
        let gone = match &self.place {
            Place::Directory(directory) => fs::remove_dir_all(directory).map_err(Into::into),
            Place::Nowhere => Ok(()),
            Place::OnServer(server) => execute(server, format!("DROP DATABASE {} WITH (FORCE)", self.name)),
        };
        if let Err(error) = gone {
            // Not the URL: it may have a password in it.
            eprintln!("tasks: {} is left behind: {error}", self.name);
        }
    }
}

fn execute(server: &str, statement: String) -> Result<(), BoxError> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut connection = PgConnection::connect(server).await?;
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    })
}
