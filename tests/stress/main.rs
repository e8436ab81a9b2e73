//! Many calls of every kind at once, from every kind of caller, on every pool; and what must hold of each and of all.
//!
//! A round that goes wrong prints its seed: `STRESS_SEED=n cargo test --test stress random` begins with that round again.
//! The threads' order is the machine's, so it may take a few tries. The long form is
//! `cargo test --release --test stress -- --ignored --nocapture`, for `STRESS_SECONDS` (default 120).
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
