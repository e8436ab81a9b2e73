//! Tasks with an id, from the outside. Numbers such as F8 or P13 are those of the acceptance list (cases taken from other frameworks' own
//! test suites and from the bugs of peers).
#![allow(clippy::unwrap_used)]

mod accepted;
mod after_response;
mod cancel;
mod crashes;
#[path = "../databases/mod.rs"]
mod databases;
mod drain;
mod ends;
mod failing_store;
mod hostile;
mod http;
mod list;
mod memory_store;
mod over_http;
mod postgres_store;
mod prefer;
mod processes;
mod progress;
mod service;
mod sqlite_store;
mod store_suite;
mod streams;
mod support;
mod together;
