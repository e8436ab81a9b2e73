#![doc = include_str!("lib.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod axum;
#[cfg(feature = "blocking-detector")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking-detector")))]
pub mod blocking_detector;
#[cfg(feature = "hyper")]
#[cfg_attr(not(test), expect(dead_code, reason = "the connection wrapper that uses it is yet to come"))]
mod flush;
mod head;
pub mod offload;
pub mod pool;
mod sync;

pub use self::{
    offload::{Offload, OffloadLayer},
    pool::{Pool, Rejection, ThreadPool},
};
