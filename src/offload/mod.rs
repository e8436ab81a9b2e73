//! x

mod admission;
mod backpressure;
mod future;
mod head;
mod inspect;
mod invoke;
mod layer;
mod reject;
mod service;
mod sync_body;
mod sync_fn;

pub use self::{
    future::ResponseFuture,
    head::Head,
    inspect::{Carry, CarryRequest, Everything, Filter, FilterRequest, Inspect},
    layer::OffloadLayer,
    reject::{Http, Problem, Protocol, Reject, Typed, With},
    service::Offload,
    sync_body::SyncBody,
    sync_fn::{SyncFn, sync_fn},
};
pub use crate::pool::{
    Rejection,
    call::{Cancellation, cancellation, cancelled},
};
