//! What a layer reads from a request before the request goes to the pool.

mod carry;
mod filter;
mod prioritize;

use std::fmt;

use crate::pool::Priority;

pub use self::{
    carry::{Carry, CarryRequest},
    filter::{Filter, FilterRequest},
    prioritize::{Prioritize, PrioritizeRequest},
};

/// What a layer reads from a request: whether to offload it, how urgent it is, and what to carry along.
///
/// Put together by the methods of [`OffloadLayer`](super::OffloadLayer); there is no need to implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot look at requests of type `{Req}`",
    note = "`.filter(..)`, `.priority(..)` and `.carry(..)` look at the head of an `http::Request`",
    note = "for other requests use `.filter_request(|request: &MyRequest| ..)`, `.priority_request(..)` and `.carry_request(..)`"
)]
pub trait Inspect<Req>: Clone + Send + Sync + 'static {
    /// What the request's work takes along.
    type Carried: Send + 'static;

    /// `false` passes the request straight through.
    fn offloads(&self, request: &Req) -> bool;

    /// How the request stands against others that wait.
    fn priority(&self, _: &Req) -> Priority {
        Priority::Normal
    }

    /// Reads what the work takes along.
    fn capture(&self, request: &Req) -> Self::Carried;

    /// Calls `poll`, once, with what was carried in place.
    fn within(&self, carried: &Self::Carried, poll: &mut dyn FnMut());
}

/// Offloads every request and carries nothing: the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everything;

impl<Req> Inspect<Req> for Everything {
    type Carried = ();

    fn offloads(&self, _: &Req) -> bool {
        true
    }

    fn capture(&self, _: &Req) {}

    fn within(&self, (): &(), poll: &mut dyn FnMut()) {
        poll();
    }
}

/// `Debug` for a type that wraps closures: its name and what it wraps.
fn debug_wrapper(f: &mut fmt::Formatter<'_>, name: &str, inner: &dyn fmt::Debug) -> fmt::Result {
    f.debug_tuple(name).field(inner).finish()
}
