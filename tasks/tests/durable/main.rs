//! Durable jobs, from the outside: each test on SQLite and, if `DATABASE_URL` names one, on Postgres. Numbers such as P14 are those of the
//! acceptance list.
#![allow(clippy::unwrap_used)]

mod cancel;
#[path = "../databases/mod.rs"]
mod databases;
mod elsewhere;
mod enqueue;
mod jobs;
mod leader;
mod lease;
mod overflow;
mod start;
mod stranger;
mod support;
mod time;
mod transaction;
