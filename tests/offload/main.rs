//! The layer and the pools from the outside, on tower alone: no HTTP, no sockets. Numbers such as E1 or P16 are those of
//! the acceptance list (cases taken from other frameworks' own test suites).
#![allow(clippy::unwrap_used)]

mod admission;
mod bad_input;
mod cancel;
mod compose;
mod context;
mod custom_pool;
mod dropping;
mod panics;
mod policy;
mod priority;
mod readiness;
mod replies;
mod runtimes;
mod scheduling;
mod second_pool;
mod shutdown;
mod support;
mod threads;
