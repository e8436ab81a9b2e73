//! Tests of several modules together, and what they share.

mod against_h2;
mod against_hyper;
pub(super) mod generated;
pub(super) mod scripted;
