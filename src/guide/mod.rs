//! The guide: a page for each question that concerns several modules.

// The page defines these links as URLs. The first definition counts.
/// [`ThreadPool`]: crate::ThreadPool
/// [`cancelled`]: crate::cancelled()
/// [`remaining`]: crate::remaining()
/// [`ProcessPool`]: crate::process::ProcessPool
/// [process]: crate::process#what-is-promised
/// [`workers`]: crate::process::workers
/// [workers]: crate::process::workers#what-is-promised
/// [one socket]: crate::process::workers#one-socket-not-so_reuseport
#[doc = include_str!("when_a_thread_is_not_enough.md")]
pub mod when_a_thread_is_not_enough {}
