//! Where the records of tasks are kept. See [`TaskStore`].

mod error;
mod lease;
mod list;
mod memory;
mod op;
mod retention;
mod shelf;
#[allow(clippy::module_inception)]
mod store;

pub use self::{
    error::StoreError,
    lease::{Epoch, Lease, Process},
    list::{Filter, Listing, Page},
    memory::MemoryStore,
    op::{Found, Op, Written},
    retention::{Retention, Swept},
    store::{StoreFuture, TaskStore},
};
