use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use super::{Builder, DrainReport, Hold, Rejected, Reservation, Stats, Task, TaskHandle, TaskOutput, shared::Shared};
use crate::pool::{Pool, ThreadPool};

/// Runs tasks that nobody waits for. A handle: clones are the same background.
///
/// See the [module docs](crate::background).
#[derive(Clone)]
pub struct Background {
    shared: Arc<Shared>,
}

impl Background {
    /// With the default options, and sync work on this pool, which should be no other's.
    pub fn new(pool: impl Pool) -> Self {
        Self::builder().pool(pool).build()
    }

    /// Every option. See [`Builder`].
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(super) fn default_pool() -> ThreadPool {
        match ThreadPool::builder().name("background").min_threads(0).max_threads(DEFAULT_THREADS).build() {
            Ok(pool) => pool,
            Err(error) => panic!("the default pool of a background: {error}"),
        }
    }

    pub(super) fn from_shared(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// Registers sync work, to run on the pool: a [task](Self::task) without name and limit.
    ///
    /// # Errors
    ///
    /// If every place is taken, or the background is closed. The work is dropped then.
    pub fn run<F, T>(&self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.task("").run(work)
    }

    /// Registers async work, to run on the current runtime: a [task](Self::task) without name and limit.
    ///
    /// It must not block: it is a task of the runtime like any other. Work that blocks is for [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn spawn<F>(&self, work: F) -> Result<TaskHandle, Rejected>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task("").spawn(work)
    }

    /// A task of that name, to be given options and work.
    ///
    /// The name stands in reports, spans and metrics; as a label of metrics it should be one of few.
    pub fn task(&self, name: impl Into<Cow<'static, str>>) -> Task<'_> {
        Task::new(self, name.into())
    }

    /// Takes the place of a task now, to give it its work later, or never.
    ///
    /// The runtime and the span of this moment are those of the task.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_offload::Background;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), tower_offload::background::Rejected> {
    /// let background = Background::default();
    /// let mail = background.reserve("mail")?; // full is known here
    /// let other = background.reserve("other")?;
    ///
    /// mail.run(|| println!("sent"));
    /// drop(other); // skipped
    /// background.drain(Duration::from_secs(10)).await;
    /// assert_eq!((background.stats().completed, background.stats().skipped), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn reserve(&self, name: impl Into<Cow<'static, str>>) -> Result<Reservation, Rejected> {
        self.shared.reserve(name.into()).map(|control| Reservation::new(self.shared.clone(), control))
    }

    /// [Cancels](TaskHandle::cancel) every task of that name which is not over, and returns how many these were.
    pub fn cancel(&self, name: &str) -> usize {
        self.shared.cancel_named(name)
    }

    /// As [`TaskHandle::cancel`].
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    pub(crate) fn cancel_id(&self, id: u64) -> bool {
        self.shared.cancel(id)
    }

    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for those that run tasks in order"))]
    pub(crate) fn hold(&self) -> Hold {
        Hold::new(self.shared.clone())
    }

    /// Takes no tasks any more but those that running tasks register. Those that have a place run.
    pub fn close(&self) {
        self.shared.close();
    }

    /// `true` once [`close`](Self::close) or [`drain`](Self::drain) was called.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// What it has done and is doing.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Closes, waits until every task is over or `deadline` has passed, and says what became of them.
    ///
    /// One deadline for all, those included that tasks register meanwhile from their own code (not from what they spawn elsewhere). At
    /// the deadline whatever has not begun is dropped and counted as cancelled; what still runs is told to stop, listed, and not
    /// waited for. An unspent [`Reservation`] is waited for as a task is.
    ///
    /// Foreign destructors do not hold it up: what waits at the deadline is dropped on a thread of its own, one after the other, and
    /// perhaps not before this returns. But an async task whose `Drop` blocks holds up the thread of its runtime, and this with it if it
    /// is polled there.
    ///
    /// The counts are of what ended during this drain; [`stats`](Self::stats) has those since the beginning. A second one waits for what the first left, with its own deadline.
    /// Nothing is logged by it.
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the background is closed, and the tasks that have a place go on.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        self.shared.drain(deadline).await
    }
}

impl Default for Background {
    /// On a pool of its own, named `background`: up to 8 threads, started on demand; sync work that is seldom urgent gets few, so
    /// that it cannot crowd out the event loop.
    ///
    /// # Panics
    ///
    /// If the system gives no thread.
    fn default() -> Self {
        Self::builder().build()
    }
}

const DEFAULT_THREADS: usize = 8;

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("pool", &self.shared.pool).field("stats", &self.stats()).finish()
    }
}
