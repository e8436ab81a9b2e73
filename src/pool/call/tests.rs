use std::{
    pin::pin,
    sync::{Mutex, PoisonError, atomic::AtomicUsize},
};

use super::*;
use crate::pool::{Admission, CallOptions, Pool, permits::PermitKind, time};

/// A pool whose entries are run by the test.
#[derive(Debug)]
struct Held {
    admission: Admission,
    entries: Mutex<Vec<Runnable>>,
}

impl Held {
    fn new() -> Arc<Self> {
        Arc::new(Self { admission: Admission::new("held", 8), entries: Mutex::default() })
    }

    fn take(&self) -> Runnable {
        let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).pop();
        entry.expect("an entry is queued")
    }

    /// Makes a detached call that counts its runs, with a timeout of a second.
    fn detached(self: &Arc<Self>, runs: &Arc<AtomicUsize>) -> JoinHandle<()> {
        let (pool, runs): (Arc<dyn Pool>, _) = (self.clone(), runs.clone());
        let options = CallOptions::new().timeout(Duration::from_secs(1));
        let queue_permit = QueuePermit::try_acquire(&pool, options, PermitKind::Exempt).expect("the queue has room");
        let admitted = Admitted { queue_permit, layer_permit: None, options };
        let work = async move { _ = runs.fetch_add(1, Ordering::SeqCst) };
        spawn(admitted, Context::capture(), OnCallerDrop::Detach, work)
    }
}

impl Pool for Held {
    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn schedule(&self, runnable: Runnable) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(runnable);
    }
}

/// The worker starts the call at the time at which its last call has ended, which was before the
/// deadline.
#[tokio::test(start_paused = true)]
async fn detached_call_never_starts_after_its_caller_was_answered() {
    let (pool, runs) = (Held::new(), Arc::default());
    let mut call = pin!(pool.detached(&runs));
    let mut clock = Clock::default();
    clock.end_call(time::now());
    let answer = (&mut call).await;
    assert!(matches!(answer, Err(CallFailure::Rejected(CallError::DeadlineExceeded))), "{answer:?}");
    pool.take().run_without_wake(Some(&mut clock));
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    let stats = pool.admission.stats();
    assert_eq!((stats.started, stats.rejected, stats.in_flight, stats.permits_in_use), (0, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn detached_call_that_expires_without_a_caller_is_counted() {
    let (pool, runs) = (Held::new(), Arc::default());
    let call = pool.detached(&runs);
    tokio::time::advance(Duration::from_secs(2)).await;
    drop(call);
    pool.take().run();
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    let stats = pool.admission.stats();
    assert_eq!((stats.started, stats.rejected, stats.abandoned, stats.in_flight), (0, 1, 1, 0));
}
