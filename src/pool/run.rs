use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::{
    Pool, Rejection, Slot,
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
/// The future ends with [`Rejection::Overloaded`] if the queue is full, and with [`Rejection::Closed`] if the pool is
/// shut down.
///
/// # Panics
///
/// A panic of the closure is resumed where the future is polled, with its payload.
///
/// # Cancel safety
///
/// Dropped before the closure started, the closure is dropped too and never runs; dropped later, [`cancelled`](crate::offload::cancelled)
/// turns true inside it and its value is dropped on the pool.
pub fn run<P, W, T>(pool: P, work: W) -> Run<T>
where
    P: Pool,
    W: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Run(Slot::claim(pool.into_shared()).map(|slot| {
        let admitted = Admitted { slot, place: call::Current::place() };
        call::spawn(admitted, call::Context::capture(), Departure::Cancel, async move { work() })
    }))
}

/// The future of [`run`]: the closure's value, or why it did not run.
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
