//! Records in a database: SQLite beside the process, or a Postgres that several processes share. See [`SqlStore`].

mod database;
mod engine;
mod error;
mod group;
#[cfg(feature = "sqlite")]
mod lock;
mod migration;
#[cfg(feature = "postgres")]
mod postgres;
mod query;
mod row;
mod sql_store;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use self::sql_store::SqlStore;
#[cfg(feature = "river")]
pub(crate) use self::{
    engine::Engine,
    error::store_error,
    postgres::pair as postgres_pair,
    postgres::{RENEWALS, is_conflict},
    sqlite::pair as sqlite_pair,
};
