//! Durable jobs when processes crash: the example `jobs` as a program, with real signals and real
//! HTTP. Each test runs on SQLite and, if `DATABASE_URL` is set, on Postgres.
//!
//! `cargo test` builds the example first. Before `cargo test --test jobs_crash`, run
//! `cargo build --examples`.
//!
//! The long tests take minutes:
//!
//! ```sh
//! cargo test --test jobs_crash rounds -- --ignored --nocapture --test-threads 1
//! ```
//!
//! `CRASH_ROUNDS` sets their number of rounds. `CRASH_SEED` repeats when and which processes are
//! killed, though not what they are doing at that moment.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod cluster;
mod database;
#[path = "../databases/mod.rs"]
mod databases;
mod failing;
mod http;
mod load;
mod network;
mod poison;
mod program;
mod restart;
mod rounds;
mod sequence;
mod shutdown;
mod stall;
