//! Tests of tasks and of their stores through the public API.
#![allow(clippy::unwrap_used)]

mod accepted;
mod after_response;
mod alike;
mod cancel;
mod clock;
mod crashes;
#[path = "../databases/mod.rs"]
mod databases;
mod documented;
mod ends;
mod errors;
mod failing_store;
mod hostile;
mod http;
#[cfg(target_os = "linux")]
mod in_process;
mod leases;
mod list;
mod memory_store;
mod mounted;
mod over_http;
mod postgres_store;
mod prefer;
mod processes;
mod progress;
mod sequence;
mod service;
mod shared_store;
mod shutdown;
mod sqlite_store;
mod store_suite;
mod streams;
mod support;
mod together;
mod workers;
