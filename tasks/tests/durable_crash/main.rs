//! Durable jobs when processes die: `examples/durable.rs` as a program, real signals, real HTTP, on SQLite and, if `DATABASE_URL` names one,
//! on Postgres. Numbers such as P14 are those of the acceptance list.
//!
//! `cargo test` builds the example first. `cargo test --test durable_crash` does not: precede it with `cargo build --examples`.
//! The long form is `cargo test --test durable_crash rounds -- --ignored --nocapture --test-threads 1`. `CRASH_ROUNDS` says how many rounds there
//! are; `CRASH_SEED` repeats when and which process is killed, though not what it was just doing.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../databases/mod.rs"]
mod databases;
mod http;
mod load;
mod network;
mod place;
mod poison;
mod program;
mod restart;
mod rounds;
mod scene;
mod standstill;
mod stop;
