//! Pools: where work runs, and how much of it may wait.
//!
//! | pool | threads | take it for |
//! |---|---|---|
//! | [`ThreadPool::cpu`] | as many as cores, always there | work that computes: hashing, images, parsing, models |
//! | [`ThreadPool::blocking`] | up to `n`, started on demand, reaped when idle | work that waits: disks, sync database drivers |
//! | [`Rayon`](https://docs.rs/tower-offload/latest/tower_offload/pool/struct.Rayon.html) (feature `rayon`) | those of a rayon pool | handlers that use `par_iter`, programs that have a rayon pool already |
//! | [`TokioBlocking`] | those of the runtime's `spawn_blocking`, capped | no threads beyond tokio's; tests with a paused clock |
//! | [`Inline`] | none: the caller's | tests and examples |
//!
//! Two kinds of work want two pools. Work that waits, put on the few threads of a CPU pool, queues behind itself (50 ms
//! sleeps at 200 a second on two threads: seconds of queue); work that computes, put on 64 threads, takes the cores away
//! from the event loop.
//!
//! # Bounds
//!
//! Every pool has a [`Gate`]: at most `queue_capacity` calls wait for their first poll there, and one more is refused;
//! [`Priority::Release`] has 64 places of its own.
//! Calls that have started are never refused: their wakes go into a queue of their own, which goes first and holds at most
//! one entry a call. Every eighth pick is a new call all the same, so that a future which wakes itself for ever starves
//! nobody.
//!
//! # Overload
//!
//! While more calls come than the threads can do, something has to give, and what that is can be chosen:
//!
//! | what is wanted | take | what becomes of the rest |
//! |---|---|---|
//! | every call that found a place is started, however late | [`QueuePolicy::Fifo`], the default | refused when the queue is full |
//! | callers with a deadline get their answers in time, whatever calls take | [`Codel`] | those that waited too long are answered [`Rejection::Expired`] |
//! | the same, where calls take about the same time | a small [`queue_capacity`](Builder::queue_capacity) | refused at once |
//! | some calls before others | [`Priority::High`], [`Priority::Normal`] | they wait longer, each gets a turn |
//! | some calls only when there is room | [`Priority::Low`] | refused when half of the queue is taken, shed first |
//! | what gives back a connection or a lock is never stuck behind those that wait for it | [`Priority::Release`] | 64 at a time, then refused |
//!
//! Policies and priorities are about calls that have not started. One that has started was promised an answer.
//!
//! ```
//! use std::time::Duration;
//! use tower_offload::{Rejection, ThreadPool, pool::{Codel, Pool, Priority}};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let policy = Codel::new(Duration::from_millis(10), Duration::from_millis(100));
//! let pool = ThreadPool::builder().threads(1).queue_policy(policy).build().expect("one thread");
//!
//! match pool.run_with_priority(Priority::Low, || "rows").await {
//!     Ok(report) => assert_eq!(report, "rows"),
//!     Err(Rejection::Expired | Rejection::Overloaded) => println!("again in {:?}", pool.expected_wait()),
//!     Err(other) => panic!("{other}"),
//! }
//! # }
//! ```
//!
//! # What it leaves behind
//!
//! Callers of a busy [`ThreadPool`] are woken many at a time, by a task that the pool spawns in their runtime, once, at the first
//! burst; it shows in that runtime's count of alive tasks until the pool is gone. While that goes on, a thread named
//! `offload-replies` sees to it that nobody waits for that task who cannot.
//!
//! # When not to use one
//!
//! For work that ends in microseconds: a hop to another thread and back costs tens of them. For work that only awaits: it
//! blocks nobody where it is.
//!
//! # Without any service
//!
//! [`run`] takes a closure to a pool and back, with the same bound, cancellation and context as the
//! [layer](crate::offload):
//!
//! ```
//! use tower_offload::{ThreadPool, pool::Pool};
//!
//! # #[tokio::main]
//! # async fn main() {
//! let pool = ThreadPool::builder().name("sums").threads(1).build().expect("one thread");
//! assert_eq!(pool.run(|| 1 + 1).await, Ok(2));
//! let left = pool.shutdown(std::time::Duration::from_secs(5)).await;
//! assert!(left.is_empty());
//! # }
//! ```

pub(crate) mod call;
mod crew;
mod gate;
mod inbox;
mod inline;
mod job;
mod meter;
#[allow(clippy::module_inception)]
mod pool;
mod queue;
#[cfg(feature = "rayon")]
mod rayon;
#[cfg(feature = "metrics")]
mod recorder;
mod rejection;
mod replies;
mod roster;
mod run;
mod seat;
mod slots;
mod stats;
mod stretch;
mod threads;
mod tokio_blocking;
mod workers;

pub(crate) use self::gate::{Places, Slot};
#[cfg(feature = "rayon")]
pub use self::rayon::Rayon;
pub use self::{
    gate::Gate,
    inline::Inline,
    job::Job,
    pool::Pool,
    queue::{Codel, Priority, QueuePolicy},
    rejection::Rejection,
    run::{Run, run, run_with_priority},
    stats::{Left, Stats},
    threads::{BuildError, Builder, ThreadPool},
    tokio_blocking::{NoRuntime, TokioBlocking},
};

pub use self::{
    call::{Cancellation as CancellationToken, cancellation as cancellation_token, cancelled},
    gate::Gate as Admission,
    job::Job as Runnable,
    rejection::Rejection as CallError,
    stats::{Left as PoolShutdownReport, Stats as PoolStats},
    threads::{BuildError as ThreadPoolBuildError, Builder as ThreadPoolBuilder},
};

/// How many calls may wait for their first poll unless told otherwise: a burst that a machine can work off, some hundred
/// kilobytes at most.
const DEFAULT_QUEUE_CAPACITY: usize = 1024;
