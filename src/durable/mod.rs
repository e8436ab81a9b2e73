//! Durable jobs.

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
#[cfg(feature = "after-response")]
mod overflow;
mod report;
mod river;
mod shared;
mod transaction;
mod unique;
mod worker;

#[cfg(feature = "after-response")]
#[cfg_attr(docsrs, doc(cfg(feature = "after-response")))]
pub use self::overflow::OrEnqueue;
pub use self::{
    backoff::Backoff, builder::Builder, durable::Durable, enqueue::Enqueue, error::StartError, job::Job,
    report::DrainReport, transaction::Transaction, unique::Unique,
};
