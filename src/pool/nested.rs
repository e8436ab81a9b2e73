//! Calls that block a thread of a pool until another call of the same pool is done.
//!
//! A call that awaits another call of its pool returns `Pending`, and its thread runs the other
//! call. A call that blocks on it, with `Handle::block_on`, keeps its thread. If all threads of the
//! pool do so, none is left to run the calls that they wait for.
//!
//! Whether a poll blocks or is about to return cannot be known when it starts to wait. Each poll
//! that waits for a call of its own pool is therefore recorded until it ends. If the pool is
//! stalled and every thread is in such a poll, the monitor fails the waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Waker,
};

use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// The recorded polls of one pool.
#[derive(Debug, Default)]
pub(crate) struct NestedWaits(Mutex<Vec<Arc<NestedWait>>>);

/// A poll of a call that waits for another call of the same pool.
#[derive(Debug)]
struct NestedWait {
    /// Set when the poll must stop waiting.
    is_deadlocked: AtomicBool,
    /// Waker with which the other call was polled last.
    waker: Mutex<Waker>,
}

/// Records a poll until it ends.
#[derive(Debug)]
pub(super) struct NestedWaitGuard {
    pool: Arc<NestedWaits>,
    wait: Arc<NestedWait>,
}

impl NestedWaits {
    /// Returns the number of polls that wait for a call of the same pool.
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Makes every wait fail, and wakes the threads that wait. Returns the number of waits that
    /// are notified for the first time. A wait does not fail if the call that it waits for ends first, on the
    /// thread of a wait that has failed.
    pub(super) fn fail_all(&self) -> usize {
        let waits = lock(&self.0).clone();
        let fail = |wait: &Arc<NestedWait>| {
            let is_first = !wait.is_deadlocked.swap(true, SeqCst);
            let waker = std::mem::replace(&mut *lock(&wait.waker), Waker::noop().clone());
            ignore_panic(|| waker.wake()); // User code.
            is_first
        };
        waits.iter().filter(|wait| fail(wait)).count()
    }
}

impl NestedWaitGuard {
    pub(super) fn new(pool: Arc<NestedWaits>) -> Self {
        let waker = Mutex::new(Waker::noop().clone());
        let wait = Arc::new(NestedWait { is_deadlocked: AtomicBool::new(false), waker });
        lock(&pool.0).push(wait.clone());
        Self { pool, wait }
    }

    /// Stores the waker of the poll's current wait. Returns `true` if the wait must fail.
    ///
    /// This thread stores the waker and then loads the flag. The monitor sets the flag and then
    /// loads the waker. At least one of them sees the other's write.
    pub(super) fn wait(&self, waker: Waker) -> bool {
        let replaced = std::mem::replace(&mut *lock(&self.wait.waker), waker);
        drop(replaced); // User code.
        self.wait.is_deadlocked.load(SeqCst)
    }
}

impl Drop for NestedWaitGuard {
    fn drop(&mut self) {
        lock(&self.pool.0).retain(|wait| !Arc::ptr_eq(wait, &self.wait));
    }
}
