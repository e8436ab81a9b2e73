//! The service through its own interface. Numbers such as F8 are those of the acceptance list.
#![allow(clippy::unwrap_used)]

mod alias;
mod browser;
mod cancel;
mod events;
mod hostile;
mod list;
mod mounted;
#[cfg(feature = "openapi")]
mod openapi;
mod page;
mod rig;
mod show;
