use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use super::{DEFAULT_QUEUE_CAPACITY, Gate, Job, Pool, Stats};

thread_local! {
    /// The jobs that came up while this thread ran one; `None` while it runs none.
    static PENDING: RefCell<Option<VecDeque<Job>>> = const { RefCell::new(None) };
}

/// No threads at all: a call runs where it is made, and later where it is woken. For tests and examples.
///
/// Nothing is offloaded: `call` returns when the work ends or awaits something. A waker runs the work too, on whatever
/// thread wakes; so do not use it with code that wakes while it holds a lock. With tokio's paused clock it is exact.
///
/// ```
/// use std::time::Duration;
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// use tower_offload::{OffloadLayer, offload::RejectWithError, pool::Inline};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let mut service = ServiceBuilder::new()
///     .layer(OffloadLayer::new(Inline::new()).reject(RejectWithError))
///     .service(service_fn(async |seconds: u64| {
///         tokio::time::sleep(Duration::from_secs(seconds)).await; // a paused clock: no time passes
///         Ok::<_, std::convert::Infallible>(seconds)
///     }));
/// assert_eq!(service.ready().await.unwrap().call(3600).await.unwrap(), 3600);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Inline {
    gate: Arc<Gate>,
}

impl Inline {
    /// A pool named `inline`.
    pub fn new() -> Self {
        Self { gate: Arc::new(Gate::new("inline", DEFAULT_QUEUE_CAPACITY)) }
    }

    /// What the pool has done and is doing.
    pub fn stats(&self) -> Stats {
        self.gate.stats()
    }
}

impl Default for Inline {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool for Inline {
    fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Runs the job, and after it those that came up meanwhile: a call is never polled inside its own poll, and a future
    /// that wakes itself does not grow the stack.
    fn schedule(&self, job: Job) {
        let first = PENDING.try_with(|pending| match &mut *pending.borrow_mut() {
            Some(jobs) => {
                jobs.push_back(job);
                None
            }
            none => {
                *none = Some(VecDeque::new());
                Some(job)
            }
        });
        let Ok(Some(job)) = first else { return };
        let _end = End;
        job.run();
        while let Some(job) = PENDING.with(|pending| pending.borrow_mut().as_mut().and_then(VecDeque::pop_front)) {
            job.run();
        }
    }
}

/// Says that this thread runs no job any more, however it came to that.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        let left = PENDING.try_with(|pending| pending.borrow_mut().take());
        drop(left);
    }
}
