#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::{flows::Flows, key::CallKey};
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    sync::{
        AtomicBool, AtomicUsize, Mutex,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        Padded, fence, lock,
    },
};

/// Counting semaphore for the entries of a pool's queue and for the calls of a layer. Waiters are
/// served in order of arrival. If some have a key, keys take turns (see [`Flows`]).
///
/// It is designed for one pattern: permits are acquired and released one at a time, by different
/// threads, and seldom waited for. Tokio's semaphore takes a lock for each release and an `Arc` for
/// each owned permit, which is a fifth of the cost of a call at a million calls per second. A
/// single counter would be passed between cores twice per call, so each end has its own.
///
/// # Waiting
///
/// 1. A thread that releases increments `released` and loads `has_waiters`, both with `SeqCst`. If
///    it is set, the thread serves waiters.
/// 2. A task that starts to wait stores `has_waiters` under the lock, issues a `SeqCst` fence, and
///    serves waiters.
///
/// At least one of the two sees the other's write, so that no waiter is left while a permit is
/// free.
#[derive(Debug)]
pub(crate) struct Semaphore {
    /// Maximum number of permits in use. More may be in use after it was lowered.
    limit: AtomicUsize,
    /// `true` while tasks wait. Written under the lock of `waiters`. While it is set, permits are
    /// acquired only on behalf of the first waiter.
    has_waiters: AtomicBool,
    acquire: Padded<AcquireSide>,
    /// Number of permits released so far. Invariant: `released <= acquired`, and no permit is
    /// acquired while `acquired >= released + limit`.
    released: Padded<AtomicUsize>,
    waiters: Mutex<Waiters>,
}

/// Counters that only threads which acquire permits write.
#[derive(Debug, Default)]
struct AcquireSide {
    /// Number of permits acquired so far.
    acquired: AtomicUsize,
    /// Cached value of `released`. It may be too low, but never too high. Refreshed when it
    /// indicates that no permit is available.
    released: AtomicUsize,
}

#[derive(Debug)]
struct Waiters {
    is_closed: bool,
    /// A message is sent once a permit was acquired for the receiver.
    queue: VecDeque<oneshot::Sender<()>>,
    /// Waiters with a key.
    keyed: Flows<VecDeque<oneshot::Sender<()>>>,
    /// Upper bound of the number of waiters whose receiver was dropped.
    cancelled: usize,
}

impl Waiters {
    fn new() -> Self {
        Self { is_closed: false, queue: VecDeque::new(), keyed: Flows::new(), cancelled: 0 }
    }

    fn len(&self) -> usize {
        self.queue.len() + self.keyed.len()
    }

    fn push(&mut self, key: Option<CallKey>, waiter: oneshot::Sender<()>) {
        match key {
            None => self.queue.push_back(waiter),
            Some(key) => self.keyed.push(key, VecDeque::new, |queue| queue.push_back(waiter)),
        }
    }

    /// Removes the next waiter. Those whose receiver was dropped are skipped.
    fn pop(&mut self) -> Option<oneshot::Sender<()>> {
        let Self { queue, keyed, cancelled, .. } = self;
        keyed.pop(queue, |queue| {
            loop {
                let waiter = queue.pop_front()?;
                if !waiter.is_closed() {
                    return Some(waiter);
                }
                *cancelled = cancelled.saturating_sub(1);
            }
        })
    }

    /// Removes the waiters whose receiver was dropped.
    fn remove_cancelled(&mut self) {
        self.cancelled = 0;
        self.queue.retain(|waiter| !waiter.is_closed());
        self.keyed.for_each(|queue| queue.retain(|waiter| !waiter.is_closed()));
    }

    fn take(&mut self) -> Vec<oneshot::Sender<()>> {
        let mut waiters = Vec::from(std::mem::take(&mut self.queue));
        self.keyed.for_each(|queue| waiters.extend(queue.drain(..)));
        waiters
    }
}

/// Error of [`Semaphore::acquire`] after [`Semaphore::close`].
#[derive(Debug)]
pub(crate) struct Closed;

impl Semaphore {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            has_waiters: AtomicBool::new(false),
            acquire: Padded::default(),
            released: Padded::default(),
            waiters: Mutex::new(Waiters::new()),
        }
    }

    /// Returns the number of permits in use.
    pub(super) fn in_use(&self) -> usize {
        let released = self.released.load(Acquire); // Loaded first, so that the result is never negative.
        self.acquire.acquired.load(Acquire).wrapping_sub(released)
    }

    /// Returns the number of permits released so far. It wraps around.
    pub(super) fn released(&self) -> usize {
        self.released.load(Relaxed)
    }

    /// Returns `true` if at least `permits` are in use. Cheaper than [`in_use`](Self::in_use) if
    /// fewer are.
    pub(super) fn is_in_use(&self, permits: usize) -> bool {
        let AcquireSide { acquired, released: cached } = &*self.acquire;
        let released = cached.load(Acquire);
        if acquired.load(Acquire).wrapping_sub(released) < permits {
            return false;
        }
        let released = self.released.load(Acquire);
        let in_use = acquired.load(Acquire).wrapping_sub(released);
        cached.store(released, Release);
        in_use >= permits
    }

    /// Returns the maximum number of permits in use.
    pub(super) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Changes the limit. Permits that are in use stay so. If the limit was raised,
    /// [`serve_waiters`](Self::serve_waiters) must be called next.
    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
    }

    /// Serves waiters after the limit was raised. Their wakers are user code.
    pub(super) fn serve_waiters(&self) {
        fence(SeqCst);
        if self.has_waiters.load(Relaxed) {
            let served = self.serve(&mut lock(&self.waiters));
            for _ in 0..send(served) {
                self.release();
            }
        }
    }

    /// Acquires a permit if one is available and no task waits.
    pub(crate) fn try_acquire(&self) -> bool {
        !self.has_waiters.load(Relaxed) && self.acquire_unfair()
    }

    fn acquire_unfair(&self) -> bool {
        let AcquireSide { acquired, released: cached } = &*self.acquire;
        // `released` is always loaded first: every permit was acquired before it was released, so
        // the difference is never negative.
        let mut released = cached.load(Acquire);
        let mut before = acquired.load(Acquire);
        let limit = self.limit.load(Relaxed);
        loop {
            if before.wrapping_sub(released) >= limit {
                released = self.released.load(Acquire);
                before = acquired.load(Acquire);
                if before.wrapping_sub(released) >= limit {
                    return false;
                }
                cached.store(released, Release);
            }
            match acquired.compare_exchange_weak(before, before.wrapping_add(1), AcqRel, Acquire) {
                Ok(_) => return true,
                Err(now) => before = now,
            }
        }
    }

    /// Waits for a permit. A wait that is cancelled neither keeps nor loses a permit.
    pub(crate) async fn acquire(&self, key: Option<CallKey>) -> Result<(), Closed> {
        let mut wait = Wait { semaphore: self, permit: self.enqueue(key)?, is_done: false };
        let received = (&mut wait.permit).await;
        wait.is_done = true;
        received.map_err(|_| Closed)
    }

    /// Starts to wait. The permit arrives through the receiver, which must be checked for one if it
    /// is dropped early.
    fn enqueue(&self, key: Option<CallKey>) -> Result<oneshot::Receiver<()>, Closed> {
        let (sender, receiver) = oneshot::channel();
        let served = {
            let mut waiters = lock(&self.waiters);
            if waiters.is_closed {
                return Err(Closed);
            }
            waiters.push(key, sender);
            self.has_waiters.store(true, Relaxed);
            fence(SeqCst);
            self.serve(&mut waiters)
        };
        for _ in 0..send(served) {
            self.release();
        }
        Ok(receiver)
    }

    /// Releases a permit, and serves waiters.
    pub(crate) fn release(&self) {
        let mut permits = 1;
        while permits > 0 {
            self.released.fetch_add(permits, SeqCst);
            if cfg!(tower_offload_loom) {
                fence(SeqCst); // Loom treats `SeqCst` accesses like `AcqRel`.
            }
            if !self.has_waiters.load(SeqCst) {
                return;
            }
            let served = self.serve(&mut lock(&self.waiters));
            permits = send(served);
        }
    }

    /// Acquires permits for as many waiters as possible. The caller sends them after it has
    /// released the lock.
    fn serve(&self, waiters: &mut Waiters) -> Vec<oneshot::Sender<()>> {
        let mut served = Vec::new();
        while waiters.len() > 0 && self.acquire_unfair() {
            match waiters.pop() {
                Some(waiter) => served.push(waiter),
                // No task waits any longer, and one that starts to wait needs the lock.
                None => {
                    self.released.fetch_add(1, Release);
                }
            }
        }
        if waiters.len() == 0 {
            self.has_waiters.store(false, Relaxed);
        }
        served
    }

    /// Removes a waiter whose receiver was closed.
    fn on_cancel(&self) {
        let mut waiters = lock(&self.waiters);
        waiters.cancelled += 1;
        // Scanning the queue at every cancellation would be quadratic.
        if waiters.cancelled * 2 > waiters.len() {
            waiters.remove_cancelled();
        }
        if waiters.len() == 0 {
            self.has_waiters.store(false, Relaxed);
        }
    }

    /// Fails current and future waits.
    pub(super) fn close(&self) {
        let queue = {
            let mut waiters = lock(&self.waiters);
            waiters.is_closed = true;
            self.has_waiters.store(false, Relaxed);
            waiters.take()
        };
        // Wakes the waiters, after the lock is released. Their wakers are user code.
        queue.into_iter().for_each(|waiter| ignore_panic(|| drop(waiter)));
    }
}

/// Sends permits to waiters. Returns the number of waiters that were cancelled, whose permits must
/// be released.
fn send(served: Vec<oneshot::Sender<()>>) -> usize {
    let send = |waiter: oneshot::Sender<()>| {
        catch_unwind(|| waiter.send(())).unwrap_or_else(|payload| {
            // The waiter's waker, which is user code, panicked. The permit has arrived.
            drop_payload(payload);
            Ok(())
        })
    };
    served.into_iter().filter_map(|waiter| send(waiter).err()).count()
}

/// A wait that may be cancelled after its permit has arrived.
struct Wait<'a> {
    semaphore: &'a Semaphore,
    permit: oneshot::Receiver<()>,
    is_done: bool,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.permit.close();
        if self.permit.try_recv().is_ok() {
            self.semaphore.release();
        } else {
            self.semaphore.on_cancel();
        }
    }
}
