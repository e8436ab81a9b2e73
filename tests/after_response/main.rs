//! What runs after the response, from the outside. Numbers such as D4 or E15 are those of the acceptance list (cases taken from
//! other frameworks' own test suites), those such as 5.3 are points of the design.
//!
//! A hook is an `FnOnce`, so it is never called twice; that it is called at all each test waits for.
#![allow(clippy::unwrap_used)]

mod apart;
mod attempts;
mod axum;
mod conditions;
mod ends;
mod ends_badly;
mod late;
mod layers;
mod limits;
mod memory;
mod order;
mod panics;
mod random;
mod runtimes;
mod support;
mod tasks;
mod tonic;
mod wire;
