//! Work that nobody waits for: sync on a pool, async on the runtime, bounded, and drained at shutdown.
//!
//! Take it for what a request causes but does not need for its answer: mails, indexing, thumbnails. Each task has a place
//! from its registration to its end, so that too many are refused while the handler can still say so, and a permit while
//! it runs.
//!
//! ```
//! use std::time::Duration;
//! use tower_offload::Background;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), tower_offload::background::Rejected> {
//! let background = Background::default();
//! background.run(|| std::fs::read("/dev/null").map(drop))?; // blocking: on the pool
//! background.spawn(async { tokio::task::yield_now().await })?; // async: on the runtime
//!
//! let report = background.drain(Duration::from_secs(10)).await; // at shutdown
//! assert!(report.is_clean());
//! assert_eq!(background.stats().completed, 2);
//! # Ok(())
//! # }
//! ```
//!
//! With every option, and a pool of its own:
//!
//! ```
//! use std::{sync::mpsc, time::Duration};
//! use tower_offload::{Background, ThreadPool};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), tower_offload::background::Rejected> {
//! let (failures, failed) = mpsc::channel();
//! let background = Background::builder()
//!     .pool(ThreadPool::blocking(4))
//!     .queue_capacity(100)
//!     .max_running(4)
//!     .on_failure(move |failure| failures.send(failure.to_string()).unwrap_or_default())
//!     .build();
//!
//! let task = background.task("mail").timeout(Duration::from_secs(30));
//! task.run(|| Err("no such address"))?;
//! background.drain(Duration::from_secs(10)).await;
//! assert_eq!(failed.recv().as_deref(), Ok("background task 1 `mail` failed: no such address"));
//! # Ok(())
//! # }
//! ```
//!
//! # A pool of its own
//!
//! Give it a pool that no [layer](crate::offload) has: background work on the pool of the requests takes its threads, and
//! requests wait. [`Background::default`] makes one. Async tasks run on the runtime of whoever registered them; outside
//! of any runtime, and if that runtime is gone when they start, on the pool.
//!
//! # What is promised
//!
//! A task that was registered runs, in the order of registration as permits come free, unless it is cancelled, a drain's
//! deadline passes, or the process ends: nothing is written down. A panic or an error ends that task and no other, and is
//! reported once, to [the sink](Builder::on_failure). Tasks go on when every handle is gone.
//!
//! Sync work cannot be stopped from outside. After its [timeout](Task::timeout), its [cancellation](TaskHandle::cancel)
//! or the drain's deadline [`cancelled`] is true inside it, and it keeps its thread, place and permit until it returns.
//! Async tasks are dropped at their next `.await`.
//!
//! # When not to use it
//!
//! For work whose result the answer needs ([`pool::run`](crate::pool::run())), and for work that must survive a crash.

mod aside;
#[allow(clippy::module_inception)]
mod background;
mod builder;
mod control;
mod error;
mod failure;
mod handle;
mod hold;
mod output;
mod over;
#[cfg(feature = "metrics")]
mod recorder;
mod register;
mod report;
mod reservation;
mod running;
mod shared;
mod span;
mod state;
mod stats;
mod stopping;
mod task;
mod ticket;
mod within;
mod work;

#[cfg_attr(not(feature = "after-response"), allow(unused_imports, reason = "for those that run tasks in order"))]
pub(crate) use self::hold::Hold;
pub use self::register::Register;
pub use self::register::{Place, sealed::Sealed};
pub use self::{
    background::Background,
    builder::Builder,
    error::Rejected,
    failure::TaskFailure,
    handle::TaskHandle,
    output::TaskOutput,
    report::{DrainReport, Orphan},
    reservation::Reservation,
    stats::Stats,
    task::Task,
};
pub use self::{over::Over, work::Body};
pub use crate::pool::call::{Cancellation, cancellation, cancelled};
