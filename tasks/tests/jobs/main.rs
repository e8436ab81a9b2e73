//! Durable jobs. Each test runs on SQLite and, if `DATABASE_URL` is set, on Postgres.
#![allow(clippy::unwrap_used)]

mod begin;
mod cancel;
mod chains;
mod clock;
mod context;
#[path = "../databases/mod.rs"]
mod databases;
mod enqueue;
mod faults;
mod fence;
mod follow;
mod install;
mod interrupted;
mod leader;
mod lease;
mod notify;
mod on_end;
mod operations;
mod other_client;
mod other_languages;
mod overflow;
mod paused;
#[cfg(target_os = "linux")]
mod process;
mod restart;
mod results;
mod schedules;
mod sequence;
mod sequence_postgres;
mod start;
mod steps;
mod stop_claiming;
mod strangers;
mod support;
mod timeouts;
mod transaction;
mod values;
