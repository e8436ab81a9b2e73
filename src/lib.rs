// The README defines these links relative to the repository. The first definition counts.
//! [architecture]: https://docs.rs/crate/tower-offload/latest/source/ARCHITECTURE.md
//! [changelog]: https://docs.rs/crate/tower-offload/latest/source/CHANGELOG.md
//! [processes]: https://docs.rs/tower-offload/latest/tower_offload/guide/when_a_thread_is_not_enough/
//! [contributing]: https://docs.rs/crate/tower-offload/latest/source/CONTRIBUTING.md
//! [tasks]: https://docs.rs/tower-offload-tasks
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "after-response")]
#[cfg_attr(docsrs, doc(cfg(feature = "after-response")))]
pub mod after_response;
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod axum;
pub mod background;
#[cfg(feature = "blocking-detector")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking-detector")))]
pub mod blocking_detector;
#[cfg(feature = "metrics")]
mod blocking_metrics;
#[cfg(feature = "flush")]
#[cfg_attr(docsrs, doc(cfg(feature = "flush")))]
pub mod flush;
mod grpc;
#[cfg(all(doc, feature = "process"))]
#[cfg_attr(docsrs, doc(cfg(feature = "process")))]
pub mod guide;
pub mod offload;
mod panic;
pub mod pool;
#[cfg(feature = "process")]
#[cfg_attr(docsrs, doc(cfg(feature = "process")))]
pub mod process;
mod request_head;
mod sync;

#[cfg(feature = "after-response")]
#[cfg_attr(docsrs, doc(cfg(feature = "after-response")))]
pub use self::after_response::{AfterResponse, AfterResponseLayer};
pub use self::{
    background::Background,
    offload::{Offload, OffloadLayer},
    pool::{CallError, Pool, Priority, ThreadPool, cancelled, remaining},
};
