//! Tests of the layer and the pools on plain tower, without HTTP or sockets.
#![allow(clippy::unwrap_used)]

mod adaptive;
mod admission;
mod bad_input;
mod busy;
mod cancel;
mod compose;
mod context;
mod custom_pool;
mod deadline;
mod dropping;
mod fair;
mod odd_inputs;
mod panics;
mod policy;
mod priority;
mod readiness;
mod runtimes;
mod scheduling;
mod second_pool;
mod shutdown;
mod support;
mod threads;
mod wake_batch;
