#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::{error::CallError, flows::Flows, key::CallKey, shares::Shares};
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
/// free that it may have.
///
/// # Shares
///
/// With [`with_shares`](Self::with_shares) a key has at most its share of the permits (see
/// [`Shares`]). Waiters of a key that has used it are passed over, and are no reason to refuse a
/// permit to others.
#[derive(Debug)]
pub(crate) struct Semaphore {
    /// Maximum number of permits in use. More may be in use after it was lowered.
    limit: AtomicUsize,
    /// Like `limit`, for a call whose group has no permit.
    first_limit: AtomicUsize,
    /// `true` while tasks wait. Written under the lock of `waiters`. While it is set, permits are
    /// acquired only under that lock, and for others only if no waiter may have them.
    ///
    /// Only while it is set, a permit may be acquired for a moment that no waiter may have: the
    /// spare. A thread without the lock that finds no permit loads this flag before it gives up.
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
    queue: VecDeque<Waiter>,
    /// Waiters with a key.
    keyed: Flows<VecDeque<Waiter>>,
    /// Permits in use by calls with a key. `None` if keys have no share. A permit is counted when
    /// it is acquired, and no longer counted before it is released.
    shares: Option<Shares>,
    /// Upper bound of the number of waiters whose receiver was dropped.
    cancelled: usize,
}

#[derive(Debug)]
struct Waiter {
    key: Option<CallKey>,
    /// A message is sent once a permit was acquired for the receiver.
    sender: oneshot::Sender<()>,
    /// `false` once the waiter is removed because its receiver was dropped.
    has_permit: bool,
}

impl Waiters {
    fn new(shares: Option<Shares>) -> Self {
        Self { is_closed: false, queue: VecDeque::new(), keyed: Flows::new(), shares, cancelled: 0 }
    }

    fn len(&self) -> usize {
        self.queue.len() + self.keyed.len()
    }

    fn push(&mut self, waiter: Waiter) {
        match waiter.key {
            None => self.queue.push_back(waiter),
            Some(key) => self.keyed.push(key, VecDeque::new, |queue| queue.push_back(waiter)),
        }
    }

    /// Moves the next waiter whose key may have one of the `left` permits to `served`, and counts
    /// it. Those before it whose receiver was dropped are moved too, without a permit, because
    /// dropping their wakers is user code. Returns `false` if there is no such waiter.
    fn serve_next(&mut self, left: usize, served: &mut Vec<Waiter>) -> bool {
        let Self { queue, keyed, shares, cancelled, .. } = self;
        let may_have = |key: Option<CallKey>| match (&*shares, key) {
            (Some(shares), Some(key)) => shares.has_room(key, left),
            _ => true,
        };
        let waiter = keyed.pop(queue, |queue| {
            loop {
                let waiter = queue.front()?;
                if waiter.sender.is_closed() {
                    served.extend(queue.pop_front());
                    *cancelled = cancelled.saturating_sub(1);
                } else if may_have(waiter.key) {
                    return queue.pop_front();
                } else {
                    return None;
                }
            }
        });
        let Some(waiter) = waiter else { return false };
        self.count(waiter.key);
        served.push(Waiter { has_permit: true, ..waiter });
        true
    }

    /// Counts a permit of a key.
    fn count(&mut self, key: Option<CallKey>) {
        if let (Some(shares), Some(key)) = (&mut self.shares, key) {
            shares.add(key);
        }
    }

    /// Stops counting a permit of a key.
    fn uncount(&mut self, key: CallKey) {
        if let Some(shares) = &mut self.shares {
            shares.remove(key);
        }
    }

    /// Removes the waiters whose receiver was dropped. They must be dropped without the lock.
    fn remove_cancelled(&mut self) -> Vec<Waiter> {
        self.cancelled = 0;
        let mut removed = Vec::new();
        let mut remove = |queue: &mut VecDeque<Waiter>| {
            let waiting = queue.drain(..).filter_map(|waiter| {
                if waiter.sender.is_closed() {
                    removed.push(waiter);
                    None
                } else {
                    Some(waiter)
                }
            });
            *queue = waiting.collect();
        };
        remove(&mut self.queue);
        self.keyed.for_each(remove);
        removed
    }

    fn take(&mut self) -> Vec<Waiter> {
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
        Self::of(limit, None)
    }

    /// Returns a semaphore of which each key has at most its share.
    pub(super) fn with_shares(limit: usize) -> Self {
        Self::of(limit, Some(Shares::default()))
    }

    fn of(limit: usize, shares: Option<Shares>) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            first_limit: AtomicUsize::new(limit),
            has_waiters: AtomicBool::new(false),
            acquire: Padded::default(),
            released: Padded::default(),
            waiters: Mutex::new(Waiters::new(shares)),
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

    /// Changes the limit, and that for a call whose group has no permit. The latter does not apply
    /// while tasks wait, which take turns. Permits that are in use stay so. If the limit was
    /// raised, [`serve_waiters`](Self::serve_waiters) must be called next.
    pub(super) fn set_limit(&self, limit: usize, first_limit: usize) {
        self.limit.store(limit, Relaxed);
        self.first_limit.store(first_limit, Relaxed);
    }

    /// Serves waiters after the limit was raised. Their wakers are user code.
    pub(super) fn serve_waiters(&self) {
        fence(SeqCst);
        if self.has_waiters.load(Relaxed) {
            self.serve_and_send();
        }
    }

    /// Acquires a permit if one is available and no task waits.
    pub(crate) fn try_acquire(&self) -> bool {
        !self.has_waiters.load(Relaxed) && self.acquire_unfair()
    }

    /// Acquires a permit if one is available that no waiter may have, and if the key has not used
    /// its share.
    ///
    /// # Errors
    ///
    /// Returns `KeyLimited` if only the share of the key is used up, and otherwise `Overloaded`.
    pub(super) fn try_acquire_share(&self, key: Option<CallKey>) -> Result<(), CallError> {
        if key.is_none() && !self.has_waiters.load(Relaxed) && self.acquire_unfair() {
            return Ok(());
        }
        let (limit, first_limit) = (self.limit(), self.first_limit.load(Relaxed));
        if self.is_full(if key.is_some() { limit.max(first_limit) } else { limit }) {
            return Err(CallError::Overloaded);
        }
        let mut waiters = lock(&self.waiters);
        let (served, has_spare) = self.acquire_for(&mut waiters);
        let acquired = self.acquire_as(key, &mut waiters, has_spare);
        drop(waiters);
        self.send(served);
        acquired
    }

    /// Returns `true` if no permit below `limit` is left. A spare is left.
    fn is_full(&self, limit: usize) -> bool {
        let is_in_use = || self.is_in_use(limit);
        // The second look is for a spare that was discarded before the last waiter was removed.
        is_in_use() && !self.has_waiters.load(Acquire) && is_in_use()
    }

    /// Acquires a permit for a call that does not wait, after `acquire_for` has served waiters.
    fn acquire_as(&self, key: Option<CallKey>, waiters: &mut Waiters, has_spare: bool) -> Result<(), CallError> {
        let left = match has_spare {
            true => self.left_with_spare(),
            // The waiters get the next permit.
            false if waiters.len() > 0 => 0,
            false => self.limit().saturating_sub(self.in_use()),
        };
        match (key, &waiters.shares) {
            (Some(key), Some(shares))
                if !has_spare
                    && waiters.len() == 0
                    && shares.has_none(key.group())
                    && self.acquire_below(self.first_limit.load(Relaxed)) =>
            {
                waiters.count(Some(key));
                Ok(())
            }
            _ if left == 0 => {
                // The limit may have been lowered since the spare was acquired.
                if has_spare {
                    self.discard_spare();
                }
                Err(CallError::Overloaded)
            }
            // Checked before a permit is acquired, so that other threads are not refused it.
            (Some(key), Some(shares)) if !shares.has_room(key, left) => {
                if has_spare {
                    self.discard_spare();
                }
                Err(CallError::KeyLimited)
            }
            _ if !has_spare && !self.acquire_unfair() => Err(CallError::Overloaded),
            _ => {
                waiters.count(key);
                Ok(())
            }
        }
    }

    fn acquire_unfair(&self) -> bool {
        self.acquire_below(self.limit())
    }

    /// Acquires a permit if fewer than `limit` are in use.
    fn acquire_below(&self, limit: usize) -> bool {
        let AcquireSide { acquired, released: cached } = &*self.acquire;
        // `released` is always loaded first: every permit was acquired before it was released, so
        // the difference is never negative.
        let mut released = cached.load(Acquire);
        let mut before = acquired.load(Acquire);
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
        let mut wait = Wait { semaphore: self, key, permit: self.enqueue(key)?, is_done: false };
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
            waiters.push(Waiter { key, sender, has_permit: false });
            self.has_waiters.store(true, Relaxed);
            fence(SeqCst);
            self.serve(&mut waiters)
        };
        self.send(served);
        Ok(receiver)
    }

    /// Releases a permit, and serves waiters.
    #[inline]
    pub(crate) fn release(&self) {
        if self.release_some(1) {
            self.serve_and_send();
        }
    }

    /// Releases a permit that was acquired with this key, and serves waiters.
    #[inline]
    pub(super) fn release_share(&self, key: Option<CallKey>) {
        if let Some(key) = key {
            lock(&self.waiters).uncount(key);
        }
        self.release();
    }

    /// Returns `true` if waiters must be served next.
    #[inline]
    fn release_some(&self, permits: usize) -> bool {
        self.released.fetch_add(permits, SeqCst);
        if cfg!(tower_offload_loom) {
            fence(SeqCst); // Loom treats `SeqCst` accesses like `AcqRel`.
        }
        self.has_waiters.load(SeqCst)
    }

    #[cold]
    fn serve_and_send(&self) {
        let served = self.serve(&mut lock(&self.waiters));
        self.send(served);
    }

    /// Sends permits that were acquired for waiters, and releases those of waiters that were
    /// cancelled meanwhile.
    fn send(&self, mut served: Vec<Waiter>) {
        loop {
            let mut cancelled = 0;
            for Waiter { key, sender, has_permit } in served {
                if !has_permit {
                    ignore_panic(|| drop(sender));
                    continue;
                }
                // A panic comes from the waiter's waker: user code. The permit has arrived.
                let sent = catch_unwind(|| sender.send(())).unwrap_or_else(|payload| {
                    drop_payload(payload);
                    Ok(())
                });
                if sent.is_err() {
                    cancelled += 1;
                    key.into_iter().for_each(|key| lock(&self.waiters).uncount(key));
                }
            }
            if cancelled == 0 || !self.release_some(cancelled) {
                return;
            }
            served = self.serve(&mut lock(&self.waiters));
        }
    }

    /// Acquires permits for as many waiters as possible. The caller sends them after it has
    /// released the lock.
    fn serve(&self, waiters: &mut Waiters) -> Vec<Waiter> {
        let (served, has_spare) = self.acquire_for(waiters);
        if has_spare {
            self.discard_spare();
        }
        served
    }

    /// Like `serve`, and keeps the permit that no waiter may have, if waiters are left: the spare.
    fn acquire_for(&self, waiters: &mut Waiters) -> (Vec<Waiter>, bool) {
        let mut served = Vec::new();
        let mut has_spare = false;
        while !has_spare && waiters.len() > 0 && self.acquire_unfair() {
            has_spare = !waiters.serve_next(self.left_with_spare(), &mut served);
        }
        if waiters.len() == 0 {
            if std::mem::take(&mut has_spare) {
                self.discard_spare();
            }
            // After the spare was discarded: a thread that sees this sees that.
            self.has_waiters.store(false, Release);
        }
        (served, has_spare)
    }

    /// Returns the number of permits left. The spare, which this thread has, is one of them.
    fn left_with_spare(&self) -> usize {
        self.limit().saturating_sub(self.in_use().saturating_sub(1))
    }

    /// Undoes the acquisition of the spare. Not by a release, because the numbers of acquired and
    /// released permits are those of calls.
    fn discard_spare(&self) {
        self.acquire.acquired.fetch_sub(1, AcqRel);
    }

    /// Removes a waiter whose receiver was closed.
    fn on_cancel(&self) {
        let removed = {
            let mut waiters = lock(&self.waiters);
            waiters.cancelled += 1;
            // Scanning the queue at every cancellation would be quadratic.
            let is_due = waiters.cancelled * 2 > waiters.len();
            let removed = if is_due { waiters.remove_cancelled() } else { Vec::new() };
            if waiters.len() == 0 {
                self.has_waiters.store(false, Release);
            }
            removed
        };
        // Drops their wakers, which are user code.
        removed.into_iter().for_each(|waiter| ignore_panic(|| drop(waiter)));
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

/// A wait that may be cancelled after its permit has arrived.
struct Wait<'a> {
    semaphore: &'a Semaphore,
    key: Option<CallKey>,
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
            self.semaphore.release_share(self.key);
        } else {
            self.semaphore.on_cancel();
        }
    }
}
