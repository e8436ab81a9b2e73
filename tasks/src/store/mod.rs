//! Where the records of tasks are kept. See [`TaskStore`].

mod error;
mod lease;
mod list;
mod memory;
mod op;
mod retention;
mod shelf;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[allow(clippy::module_inception)]
mod store;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use self::sql::SqlStore;
#[cfg(feature = "river")]
pub(crate) use self::sql::{Engine, RENEWALS, is_conflict, postgres_pair, sqlite_pair, store_error};
pub use self::{
    error::StoreError,
    lease::{Epoch, Lease, Process},
    list::{Filter, Listing, Page},
    memory::MemoryStore,
    op::{Found, Op, Written},
    retention::{Retention, Swept},
    store::{StoreFuture, TaskStore},
};
