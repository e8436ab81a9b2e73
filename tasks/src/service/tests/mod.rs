//! Tests of the service through its `Service` implementation.
#![allow(clippy::unwrap_used)]

mod alias;
#[cfg(feature = "page")]
mod browser;
mod cancel;
mod controlled;
mod event;
mod events;
mod hostile;
mod list;
mod negotiate;
#[cfg(feature = "openapi")]
mod openapi;
mod operations;
#[cfg(feature = "page")]
mod page;
mod show;
