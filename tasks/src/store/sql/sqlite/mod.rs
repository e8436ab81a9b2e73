//! One file, one process, one writer.

mod connection;
#[cfg(feature = "river")]
pub(crate) mod pair;
mod schema;
#[allow(clippy::module_inception)]
mod sqlite;
mod sweep;
mod write;

pub(crate) use self::sqlite::Sqlite;

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
