use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use super::{Gate, Job, Left, Priority, Run, run, run_with_priority};

/// Something that runs jobs on threads of its own.
///
/// Two methods are enough: `schedule` has to see to it that [`Job::run`] is called, once, soon, on some thread, and
/// `gate` gives the pool's [`Gate`]. The gate bounds what may be scheduled, measures it and closes it, so an
/// implementation needs no bound, no counters and no panic handling of its own:
///
/// ```
/// use tower_offload::pool::{Gate, Job, Pool};
///
/// /// A thread for each turn of a call.
/// #[derive(Debug)]
/// struct Spawning(Gate);
///
/// impl Pool for Spawning {
///     fn gate(&self) -> &Gate {
///         &self.0
///     }
///     fn schedule(&self, job: Job) {
///         std::thread::spawn(move || job.run());
///     }
/// }
///
/// # #[tokio::main]
/// # async fn main() {
/// let pool = std::sync::Arc::new(Spawning(Gate::new("spawning", 16)));
/// assert_eq!(pool.run(|| 6 * 7).await, Ok(42));
/// # }
/// ```
pub trait Pool: fmt::Debug + Send + Sync + 'static {
    /// The front door of this pool, always the same one.
    fn gate(&self) -> &Gate;

    /// The same.
    fn admission(&self) -> &Gate {
        self.gate()
    }

    /// Takes one turn of an admitted call and returns at once.
    ///
    /// Called from `call`, from wakers and from drops; so it must not block, and must not run the job before it returns
    /// ([`Inline`](super::Inline) does, which is why it is for tests). A job cannot be turned down here, only answered
    /// with [`Job::refuse`], best from a thread of the pool.
    fn schedule(&self, job: Job);

    /// How long a new call has to expect to wait, while calls are being rejected: what `Retry-After` tells. A pool that has become
    /// idle still says what it said last.
    ///
    /// Provided: what the call waited that started last. The pools here also look at the call that waits longest now,
    /// so that a pool whose threads are all stuck does not tell what was true before.
    fn expected_wait(&self) -> Duration {
        self.gate().expected_wait()
    }

    /// Stops accepting calls, finishes what it can until `deadline` has passed, and says what was left.
    ///
    /// After the deadline calls that never started are dropped on the pool and answered
    /// [`Rejection::Closed`](super::Rejection::Closed), and so is a parked call when something wakes it. Work that is
    /// still running is reported, not joined. A second shutdown waits for the same calls, with its own deadline.
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the pool accepts nothing any more and runs what it has.
    fn shutdown(&self, deadline: Duration) -> Pin<Box<dyn Future<Output = Left> + Send + '_>> {
        Box::pin(self.gate().drain(deadline))
    }

    /// Runs a closure on the pool: what other ecosystems call `run_in_threadpool`.
    ///
    /// See [`run`](super::run()).
    fn run<T, W>(&self, work: W) -> Run<T>
    where
        Self: Clone + Sized,
        W: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        run(self.clone(), work)
    }

    /// Runs a closure on the pool, before or after others.
    ///
    /// See [`run_with_priority`](super::run_with_priority()).
    fn run_with_priority<T, W>(&self, priority: Priority, work: W) -> Run<T>
    where
        Self: Clone + Sized,
        W: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        run_with_priority(self.clone(), priority, work)
    }

    /// The pool behind a pointer, as layers keep it. For handles that are pointers already.
    #[doc(hidden)]
    fn into_shared(self) -> Arc<dyn Pool>
    where
        Self: Sized,
    {
        Arc::new(self)
    }
}

impl Pool for Arc<dyn Pool> {
    fn gate(&self) -> &Gate {
        (**self).gate()
    }

    fn schedule(&self, job: Job) {
        (**self).schedule(job);
    }

    fn expected_wait(&self) -> Duration {
        (**self).expected_wait()
    }

    fn shutdown(&self, deadline: Duration) -> Pin<Box<dyn Future<Output = Left> + Send + '_>> {
        (**self).shutdown(deadline)
    }

    fn into_shared(self) -> Arc<dyn Pool> {
        self
    }
}

impl<P: Pool> Pool for Arc<P> {
    fn gate(&self) -> &Gate {
        (**self).gate()
    }

    fn schedule(&self, job: Job) {
        (**self).schedule(job);
    }

    fn expected_wait(&self) -> Duration {
        (**self).expected_wait()
    }

    fn shutdown(&self, deadline: Duration) -> Pin<Box<dyn Future<Output = Left> + Send + '_>> {
        (**self).shutdown(deadline)
    }

    fn into_shared(self) -> Arc<dyn Pool> {
        self
    }
}
