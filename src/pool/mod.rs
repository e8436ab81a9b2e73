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
//! Every pool has a [`Gate`]: at most `queue_capacity` calls wait for their first poll there, and one more is refused.
//! Calls that have started are never refused: their wakes go into a queue of their own, which goes first and holds at most
//! one entry a call. Every eighth pick is a new call all the same, so that a future which wakes itself for ever starves
//! nobody.
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
mod roster;
mod run;
mod seat;
mod slots;
mod stats;
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

/// How many calls may wait for their first poll unless told otherwise: a burst that a machine can work off, some hundred
/// kilobytes at most.
const DEFAULT_QUEUE_CAPACITY: usize = 1024;
