//! Tests of `tower_offload::Background` through its public API.
#![allow(clippy::unwrap_used)]

mod cancellation;
mod completion;
mod failures;
mod limits;
mod runtimes;
mod sequence;
mod shutdown;
mod support;
mod timeout;
