//! What waits for the threads of a pool, and which of it goes first. Pure: no threads, no locks, time is an argument.
//!
//! [`Jobs`] holds all of it: calls that were woken, calls that give something back, and new calls in [`Lanes`] by
//! priority; a [`Lane`] is first in, first out until its [`Overload`] says otherwise.

mod codel;
mod jobs;
mod lane;
mod lanes;
mod policy;
mod priority;
mod shrink;

pub use self::{codel::Codel, policy::QueuePolicy, priority::Priority};
pub(super) use self::{codel::Unfit, jobs::Jobs, lane::Waits, shrink::shrink};

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
