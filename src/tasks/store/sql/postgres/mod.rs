//! One database, several processes, and its clock for all of them.

mod columns;
mod connection;
#[allow(clippy::module_inception)]
mod postgres;
mod schema;
mod sweep;
mod write;

pub(super) use self::postgres::Postgres;
