//! One file, one process, one writer.

mod connection;
mod schema;
#[allow(clippy::module_inception)]
mod sqlite;
mod sweep;
mod write;

pub(super) use self::sqlite::Sqlite;

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
