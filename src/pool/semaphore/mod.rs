#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
mod waiters;

use std::cell::Cell;

use tokio::sync::oneshot;

use self::waiters::{Left, Waiter, Waiters};
use super::{
    error::CallError,
    key::CallKey,
    permits::{MAX_PERMITS, PermitKind, Permits},
    shares::Shares,
};
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    sync::{
        AtomicBool, AtomicU64, AtomicUsize, Mutex,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        Padded, fence, lock, set_flag,
    },
};

/// Counting semaphore for the entries of a pool's queue and for the calls of a layer. Waiters are
/// served in order of arrival. If some have a key, keys take turns (see
/// [`Flows`](super::flows::Flows)).
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
/// # Kinds
///
/// All permits count toward the capacity, and those of kind [`Limited`](PermitKind::Limited) also
/// toward a limit, which can be lowered and raised. Waiters for the two kinds take turns, and those
/// for which there is no permit are passed over.
///
/// # Shares
///
/// With [`with_shares`](Self::with_shares) a key has at most its share of the permits (see
/// [`Shares`]). Waiters of a key that has used it are passed over, and are no reason to refuse a
/// permit to others.
#[derive(Debug)]
pub(crate) struct Semaphore {
    /// Maximum number of permits in use.
    capacity: usize,
    /// Maximum number of limited permits in use. More may be in use after it was lowered.
    limit: AtomicUsize,
    /// Like `limit`, for a call whose group has no limited permit.
    first_limit: AtomicUsize,
    /// `true` while tasks wait. Written under the lock of `waiters`. While it is set, permits are
    /// acquired only under that lock, and for others only if no waiter may have them.
    has_waiters: AtomicBool,
    /// `true` once a permit was requested with a key. Never reset.
    has_keys: AtomicBool,
    acquire: Padded<AcquireSide>,
    /// [`Permits`] released so far. Invariant: `released <= acquired` for each kind, and no permit
    /// is acquired while their difference has reached the capacity, or the limit if it is limited.
    released: Padded<AtomicU64>,
    waiters: Mutex<Waiters>,
}

/// Counters that only threads which acquire permits write.
#[derive(Debug, Default)]
struct AcquireSide {
    /// [`Permits`] acquired so far.
    acquired: AtomicU64,
    /// Cached value of `released`. It may be too low, but never too high. Refreshed when it
    /// indicates that no permit is available.
    released: AtomicU64,
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
        let capacity = limit.min(MAX_PERMITS);
        Self {
            capacity,
            limit: AtomicUsize::new(capacity),
            first_limit: AtomicUsize::new(capacity),
            has_waiters: AtomicBool::new(false),
            has_keys: AtomicBool::new(false),
            acquire: Padded::default(),
            released: Padded::default(),
            waiters: Mutex::new(Waiters::new(shares)),
        }
    }

    /// Returns the permits in use.
    pub(super) fn in_use(&self) -> Permits {
        let released = self.released.load(Acquire); // Loaded first, so that the result is never negative.
        Permits::in_use(self.acquire.acquired.load(Acquire), released)
    }

    /// Returns the number of limited permits released so far. It wraps around.
    pub(super) fn limited_released(&self) -> u32 {
        self.released.load(Relaxed) as u32
    }

    /// Returns `true` if `is_full` returns `true` for the permits in use. It must then do so for
    /// more permits too. Cheaper than [`in_use`](Self::in_use) if the result is `false`.
    pub(super) fn is_in_use(&self, is_full: impl Fn(Permits) -> bool) -> bool {
        let AcquireSide { acquired, released: cached } = &*self.acquire;
        let released = cached.load(Acquire);
        if !is_full(Permits::in_use(acquired.load(Acquire), released)) {
            return false;
        }
        let released = self.released.load(Acquire);
        let in_use = Permits::in_use(acquired.load(Acquire), released);
        cached.store(released, Release);
        is_full(in_use)
    }

    /// Like [`in_use`](Self::in_use), and refreshes the cache.
    pub(super) fn refresh_in_use(&self) -> Permits {
        let released = self.released.load(Acquire);
        let in_use = Permits::in_use(self.acquire.acquired.load(Acquire), released);
        self.acquire.released.store(released, Release);
        in_use
    }

    /// Returns `true` if as many limited permits are in use as the limit allows.
    pub(super) fn is_limit_reached(&self) -> bool {
        self.in_use().limited() >= self.limit()
    }

    /// Returns `true` for seven of eight limited permits that are acquired while at least `many`
    /// are in use. With [`refresh_in_use`](Self::refresh_in_use) for the eighth, the number is that
    /// of at most eight acquisitions before. Reads only what the thread has just written.
    #[inline]
    pub(super) fn is_one_of_many(&self, many: usize) -> bool {
        let AcquireSide { acquired, released: cached } = &*self.acquire;
        let released = cached.load(Acquire);
        let acquired = acquired.load(Acquire);
        acquired % 8 != 0 && Permits::in_use(acquired, released).limited() >= many
    }

    /// Returns `true` if a `divisor`th of the permits that this kind may have are in use.
    pub(super) fn is_used(&self, kind: PermitKind, divisor: usize) -> bool {
        let (limit, capacity) = (self.limit().div_ceil(divisor), self.capacity.div_ceil(divisor));
        self.is_in_use(|in_use| in_use.total() >= capacity || kind == PermitKind::Limited && in_use.limited() >= limit)
    }

    fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Changes the limit, and that for a call whose group has no limited permit. The latter does
    /// not apply while tasks wait, which take turns. Permits that are in use stay so. If the limit
    /// was raised, [`serve_waiters`](Self::serve_waiters) must be called next.
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

    /// Acquires a permit if one is available that no waiter may have.
    pub(crate) fn try_acquire(&self) -> bool {
        self.try_acquire_share(PermitKind::Limited, None).is_ok()
    }

    /// Acquires a permit if one is available that no waiter may have, and if the key has not used
    /// its share.
    ///
    /// # Errors
    ///
    /// Returns `KeyLimited` if only the share of the key is used up, and otherwise `Overloaded`.
    #[inline]
    pub(super) fn try_acquire_share(&self, kind: PermitKind, key: Option<CallKey>) -> Result<(), CallError> {
        if key.is_none() && !self.has_waiters.load(Relaxed) && self.acquire_unfair(kind) {
            return Ok(());
        }
        self.note_key(key);
        self.try_acquire_locked(kind, key)
    }

    /// Records that calls have keys.
    fn note_key(&self, key: Option<CallKey>) {
        if key.is_some() {
            set_flag(&self.has_keys, true, Relaxed);
        }
    }

    #[inline(never)] // Keeps it out of the path of a call without a key.
    fn try_acquire_locked(&self, kind: PermitKind, key: Option<CallKey>) -> Result<(), CallError> {
        if self.is_full(kind) {
            return Err(CallError::Overloaded);
        }
        let mut waiters = lock(&self.waiters);
        let (served, left) = self.serve(&mut waiters);
        let acquired = self.acquire_as(kind, key, &mut waiters, left);
        drop(waiters);
        self.send(served);
        acquired
    }

    /// Returns `true` if no permit is left, also for a group without one.
    fn is_full(&self, kind: PermitKind) -> bool {
        // Without keys, no group but that of the call itself has permits.
        let has_groups = self.has_keys.load(Relaxed);
        let limit = if has_groups { self.limit().max(self.first_limit.load(Relaxed)) } else { self.limit() };
        self.is_in_use(|in_use| !self.has_room(kind, limit, in_use))
    }

    /// Acquires a permit for a call that does not wait, if it is one of those that `serve` has
    /// left.
    fn acquire_as(
        &self,
        kind: PermitKind,
        key: Option<CallKey>,
        waiters: &mut Waiters,
        left: Left,
    ) -> Result<(), CallError> {
        let is_first = kind == PermitKind::Limited && waiters.len() == 0 && waiters.has_none(key, self.in_use());
        let acquired = if is_first && self.acquire_below(kind, self.first_limit.load(Relaxed)) {
            Ok(())
        } else if left.of(kind) == 0 {
            Err(CallError::Overloaded)
        } else if !waiters.may_have(kind, key, left) {
            Err(CallError::KeyLimited)
        } else if self.acquire_unfair(kind) {
            Ok(())
        } else {
            Err(CallError::Overloaded)
        };
        if acquired.is_ok() {
            waiters.count(kind, key);
        }
        acquired
    }

    /// Acquires a permit that a waiter may have.
    #[inline]
    fn acquire_unfair(&self, kind: PermitKind) -> bool {
        self.acquire_below(kind, self.limit())
    }

    #[inline]
    fn has_room(&self, kind: PermitKind, limit: usize, in_use: Permits) -> bool {
        in_use.total() < self.capacity && (kind == PermitKind::Exempt || in_use.limited() < limit)
    }

    /// Acquires a permit if one is left, and if it is exempt or fewer than `limit` are limited.
    #[inline]
    fn acquire_below(&self, kind: PermitKind, limit: usize) -> bool {
        let AcquireSide { acquired, released: cached } = &*self.acquire;
        // `released` is always loaded first: every permit was acquired before it was released, so
        // the difference is never negative.
        let mut released = cached.load(Acquire);
        let mut before = acquired.load(Acquire);
        loop {
            if !self.has_room(kind, limit, Permits::in_use(before, released)) {
                released = self.released.load(Acquire);
                before = acquired.load(Acquire);
                if !self.has_room(kind, limit, Permits::in_use(before, released)) {
                    return false;
                }
                cached.store(released, Release);
            }
            match acquired.compare_exchange_weak(before, before.wrapping_add(kind.unit()), AcqRel, Acquire) {
                Ok(_) => return true,
                Err(now) => before = now,
            }
        }
    }

    /// Waits for a permit. A wait that is cancelled neither keeps nor loses a permit.
    pub(crate) async fn acquire(&self, kind: PermitKind, key: Option<CallKey>) -> Result<(), Closed> {
        let mut wait = Wait { semaphore: self, kind, key, permit: self.enqueue(kind, key)?, is_done: false };
        let received = (&mut wait.permit).await;
        wait.is_done = true;
        received.map_err(|_| Closed)
    }

    /// Starts to wait. The permit arrives through the receiver, which must be checked for one if it
    /// is dropped early.
    fn enqueue(&self, kind: PermitKind, key: Option<CallKey>) -> Result<oneshot::Receiver<()>, Closed> {
        self.note_key(key);
        let (sender, receiver) = oneshot::channel();
        let served = {
            let mut waiters = lock(&self.waiters);
            if waiters.is_closed {
                return Err(Closed);
            }
            waiters.push(Waiter { kind, key, sender, has_permit: false });
            self.has_waiters.store(true, Relaxed);
            fence(SeqCst);
            self.serve(&mut waiters).0
        };
        self.send(served);
        Ok(receiver)
    }

    /// Releases a permit, and serves waiters.
    #[inline]
    pub(crate) fn release(&self) {
        self.release_share(PermitKind::Limited, None);
    }

    /// Releases a permit that was acquired like this, and serves waiters.
    #[inline]
    pub(super) fn release_share(&self, kind: PermitKind, key: Option<CallKey>) {
        if let Some(key) = key {
            lock(&self.waiters).uncount(kind, key);
        }
        if self.release_some(kind.unit()) {
            self.serve_and_send();
        }
    }

    /// Returns `true` if waiters must be served next.
    #[inline]
    fn release_some(&self, permits: u64) -> bool {
        self.released.fetch_add(permits, SeqCst);
        if cfg!(tower_offload_loom) {
            fence(SeqCst); // Loom treats `SeqCst` accesses like `AcqRel`.
        }
        self.has_waiters.load(SeqCst)
    }

    #[cold]
    fn serve_and_send(&self) {
        let served = self.serve(&mut lock(&self.waiters)).0;
        self.send(served);
    }

    /// Sends permits that were acquired for waiters, and releases those of waiters that were
    /// cancelled meanwhile.
    fn send(&self, mut served: Vec<Waiter>) {
        loop {
            let mut cancelled = 0;
            for Waiter { kind, key, sender, has_permit } in served {
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
                    cancelled += kind.unit();
                    key.into_iter().for_each(|key| lock(&self.waiters).uncount(kind, key));
                }
            }
            if cancelled == 0 || !self.release_some(cancelled) {
                return;
            }
            served = self.serve(&mut lock(&self.waiters)).0;
        }
    }

    /// Acquires permits for as many waiters as possible. The caller sends them after it has
    /// released the lock. Also returns the numbers of permits left, which no waiter may have.
    fn serve(&self, waiters: &mut Waiters) -> (Vec<Waiter>, Left) {
        let mut served = Vec::new();
        let left = loop {
            let left = self.left();
            let was_taken = Cell::new(false);
            let acquire = |kind| {
                self.acquire_unfair(kind) || {
                    was_taken.set(true);
                    false
                }
            };
            // If another call has taken the permit of a waiter, there are fewer left.
            if !waiters.serve_next(left, acquire, &mut served) && !was_taken.get() {
                break left;
            }
        };
        if waiters.len() == 0 {
            set_flag(&self.has_waiters, false, Relaxed);
        }
        (served, left)
    }

    fn left(&self) -> Left {
        let in_use = self.in_use();
        Left {
            of_capacity: self.capacity.saturating_sub(in_use.total()),
            of_limit: self.limit().saturating_sub(in_use.limited()),
        }
    }

    /// Removes a waiter whose receiver was closed.
    fn on_cancel(&self) {
        let (removed, served) = {
            let mut waiters = lock(&self.waiters);
            let removed = waiters.on_cancel();
            // The next waiter of a flow may have a permit that this one could not have.
            let served = if removed.is_empty() { Vec::new() } else { self.serve(&mut waiters).0 };
            (removed, served)
        };
        // Drops their wakers, which are user code.
        removed.into_iter().for_each(|waiter| ignore_panic(|| drop(waiter)));
        self.send(served);
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
    kind: PermitKind,
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
            self.semaphore.release_share(self.kind, self.key);
        } else {
            self.semaphore.on_cancel();
        }
    }
}
