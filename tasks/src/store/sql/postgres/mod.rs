//! One database, several processes, and its clock for all of them.

mod columns;
mod connection;
#[cfg(feature = "river")]
pub(crate) mod pair;
#[allow(clippy::module_inception)]
mod postgres;
mod schema;
mod sweep;
mod write;

pub(crate) use self::postgres::Postgres;
#[cfg(feature = "river")]
pub(crate) use self::{connection::is_conflict, postgres::RENEWALS};
