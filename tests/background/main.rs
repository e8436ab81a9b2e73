//! Background tasks from the outside. Numbers such as D4 or E15 are those of the acceptance list (cases taken from other
//! frameworks' own test suites).
#![allow(clippy::unwrap_used)]

mod bounds;
mod cancellation;
mod drain;
mod failures;
mod runtimes;
mod support;
mod time;
