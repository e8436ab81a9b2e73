#![doc = include_str!("lib.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod axum;
pub mod background;
#[cfg(feature = "blocking-detector")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking-detector")))]
pub mod blocking_detector;
mod head;
pub mod offload;
pub mod pool;
mod sync;

pub use self::{
    background::Background,
    offload::{Offload, OffloadLayer},
    pool::{Pool, Rejection, ThreadPool},
};
