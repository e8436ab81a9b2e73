use std::{cell::RefCell, collections::VecDeque, mem, sync::Arc};

use super::{
    Pool, Runnable,
    admission::{Admission, DEFAULT_QUEUE_CAPACITY},
    stats::PoolStats,
};

thread_local! {
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending { is_running: false, entries: VecDeque::new() }) };
}

struct Pending {
    /// `true` while this thread runs an entry.
    is_running: bool,
    /// Entries that were scheduled meanwhile.
    entries: VecDeque<Runnable>,
}

/// A pool without threads: a call runs where it is made, and later where it is woken. For tests and
/// examples.
///
/// Nothing is offloaded: `call` returns when the work ends or awaits something. A waker also runs
/// the work, on the thread that wakes, so do not use this pool with code that wakes while it holds
/// a lock. It works with tokio's paused clock.
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
///         tokio::time::sleep(Duration::from_secs(seconds)).await; // the clock is paused
///         Ok::<_, std::convert::Infallible>(seconds)
///     }));
/// assert_eq!(service.ready().await.unwrap().call(3600).await.unwrap(), 3600);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Inline {
    admission: Arc<Admission>,
}

impl Inline {
    /// Creates a pool named `inline`.
    pub fn new() -> Self {
        Self { admission: Arc::new(Admission::new("inline", DEFAULT_QUEUE_CAPACITY)) }
    }

    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> PoolStats {
        self.admission.stats()
    }
}

impl Default for Inline {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool for Inline {
    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn is_inline(&self) -> bool {
        true
    }

    /// Runs the entry, and then the entries that were scheduled while it ran. A call is therefore
    /// never polled inside its own poll, and a future that wakes itself does not grow the stack.
    fn schedule(&self, runnable: Runnable) {
        let first = PENDING.try_with(|pending| {
            let Pending { is_running, entries } = &mut *pending.borrow_mut();
            if *is_running {
                entries.push_back(runnable);
                return None;
            }
            *is_running = true;
            Some(runnable)
        });
        let Ok(Some(first)) = first else { return };
        let _reset = ResetPending;
        first.run();
        while let Some(next) = PENDING.with(|pending| pending.borrow_mut().entries.pop_front()) {
            next.run();
        }
    }
}

/// Marks that this thread no longer runs an entry, also after a panic.
struct ResetPending;

impl Drop for ResetPending {
    fn drop(&mut self) {
        let entries = PENDING.try_with(|pending| {
            let Pending { is_running, entries } = &mut *pending.borrow_mut();
            *is_running = false;
            mem::take(entries)
        });
        drop(entries);
    }
}
