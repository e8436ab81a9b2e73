use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{
    Pool, Priority, Rejection, Slot,
    call::{self, Admitted, Departure, Failure, Handle},
};

/// Runs a closure on a pool, and gives its value back.
///
/// The place in the queue is taken now, not at the first poll: a full pool is known at once.
///
/// ```
/// # #[tokio::main]
/// # async fn main() {
/// use tower_offload::{ThreadPool, pool};
///
/// let cpu = ThreadPool::cpu();
/// let sum = pool::run(cpu, || (1..=10).sum::<u32>()).await;
/// assert_eq!(sum, Ok(55));
/// # }
/// ```
///
/// # Errors
///
/// The future ends with [`Rejection::Overloaded`] if the queue is full, with [`Rejection::Expired`] if the work waited
/// there for longer than the pool's [policy](super::QueuePolicy) allows, and with [`Rejection::Closed`] if the pool is
/// shut down.
///
/// # Panics
///
/// A panic of the closure is resumed where the future is polled, with its payload.
///
/// # Cancel safety
///
/// Dropped before the closure started, the closure is dropped too and never runs; dropped later, [`cancelled`](crate::pool::cancelled)
/// turns true inside it and its value is dropped on the pool.
pub fn run<P, W, T>(pool: P, work: W) -> Run<T>
where
    P: Pool,
    W: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    run_with_priority(pool, Priority::Normal, work)
}

/// As [`run`], for work that goes before or after other work.
///
/// ```
/// use tower_offload::{ThreadPool, pool::{self, Priority}};
///
/// # #[tokio::main]
/// # async fn main() {
/// let cpu = ThreadPool::cpu();
/// let report = pool::run_with_priority(cpu, Priority::Low, || "nobody waits for it").await;
/// assert_eq!(report, Ok("nobody waits for it"));
/// # }
/// ```
///
/// # Errors
///
/// As [`run`]; besides, the future ends with [`Rejection::Overloaded`] if the work is [`Priority::Low`] and half of the
/// queue is taken.
///
/// # Panics
///
/// As [`run`].
///
/// # Cancel safety
///
/// As [`run`].
pub fn run_with_priority<P, W, T>(pool: P, priority: Priority, work: W) -> Run<T>
where
    P: Pool,
    W: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Run(Slot::claim(pool.into_shared(), priority).map(|slot| {
        let admitted = Admitted { slot, place: call::Current::place(), priority };
        call::spawn(admitted, call::Context::capture(), Departure::Cancel, async move { work() })
    }))
}

/// The future of [`run`] and [`run_with_priority`]: the closure's value, or why it did not run.
#[must_use = "dropping it cancels the closure"]
pub struct Run<T>(Result<Handle<T>, Rejection>);

impl<T> Future for Run<T> {
    type Output = Result<T, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(handle) => Poll::Ready(match ready!(Pin::new(handle).poll(cx)) {
                Ok(value) => Ok(value),
                Err(Failure::Refused(rejection)) => Err(rejection),
                Err(Failure::Panicked(payload)) => resume_unwind(payload),
            }),
            Err(rejection) => Poll::Ready(Err(*rejection)),
        }
    }
}

impl<T> fmt::Debug for Run<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Run").field(&self.0).finish()
    }
}
