//! Durable jobs.
#![doc = include_str!("elsewhere.md")]

mod alive;
mod attempt;
mod backoff;
mod builder;
mod clerk;
#[allow(clippy::module_inception)]
mod durable;
mod enqueue;
mod error;
mod group;
mod job;
mod kept;
mod report;
mod river;
mod shared;
mod transaction;
mod unique;
mod worker;

pub use self::{
    backoff::Backoff, builder::Builder, durable::Durable, enqueue::Enqueue, error::StartError, job::Job,
    report::DrainReport, transaction::Transaction, unique::Unique,
};
