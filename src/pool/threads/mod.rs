//! A thread pool of our own.

mod builder;
mod error;
mod hooks;
mod niceness;
mod setup;
mod thread_pool;

pub use self::{builder::Builder, error::BuildError, thread_pool::ThreadPool};
