//! Tests of the connections to Postgres: servers, proxies, roles and settings. They are skipped if
//! `DATABASE_URL` is not set, or if the programs that they start are not installed.
#![allow(clippy::unwrap_used)]

mod connections;
#[path = "../databases/mod.rs"]
mod databases;
mod failover;
mod open;
mod overload;
mod programs;
mod proxy;
mod rights;
mod schema;
mod support;
mod values;
