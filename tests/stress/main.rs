//! Makes concurrent calls of every kind, from every kind of caller, on every pool, and checks what
//! must hold for each call and for all of them.
//!
//! A round that fails prints its seed. `STRESS_SEED=n cargo test -p tower-offload-tests --test
//! stress random` starts with that round. The order of threads is not controlled, so it may take a
//! few attempts. The long form is `cargo test --release -p tower-offload-tests --test stress --
//! --ignored --nocapture`, which runs for `STRESS_SECONDS` (default: 120).
#![allow(clippy::unwrap_used)]

mod alarm;
mod callers;
mod job;
mod ledger;
mod panics;
mod patience;
mod presence;
mod round;
mod stage;
mod stress;
mod verdict;
