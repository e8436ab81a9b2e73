//! A call: a future that a pool polls, its output and its caller, in one allocation.
//!
//! ```text
//!  caller:  Handle ------------+              +--- Waker (timers, sockets, other calls)
//!                              v              v
//!                     Arc< Call { Lifecycle, Stage, pool } >
//!                              ^
//!  pool:    Job (a queue entry; at most one) --+
//! ```
//!
//! `Lifecycle` says who may touch the future; `Stage` holds the future or its output; `Context` and `Current` are what the
//! work sees around itself.

mod cell;
mod context;
mod current;
mod guard;
mod handle;
mod lifecycle;
mod reply;
mod stage;
mod work;

pub use self::current::{Cancellation, cancellation, cancelled};
pub(crate) use self::{
    cell::{Admitted, spawn},
    context::{Ahead, Context},
    current::{Current, Place},
    guard::{contained, discard_payload, guarded, panic_text},
    handle::{Failure, Handle},
    lifecycle::Departure,
    reply::Reply,
    work::Work,
};
