#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::{
    error::CallError,
    flows::Flows,
    key::CallKey,
    permits::{MAX_PERMITS, PermitKind, Permits},
    shares::Shares,
};
use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    sync::{
        AtomicBool, AtomicU64, AtomicUsize, Mutex,
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
/// # Kinds
///
/// All permits count toward the capacity, and those of kind [`Limited`](PermitKind::Limited) also
/// toward a limit, which can be lowered and raised. Permits that tasks wait for are of that kind.
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
    ///
    /// Only while it is set, a permit may be acquired for a moment that no waiter may have: the
    /// spare. A thread without the lock that finds no permit loads this flag before it gives up.
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

    /// Moves the next waiter whose key may have one of the permits left to `served`, and counts
    /// it. Those before it whose receiver was dropped are moved too, without a permit, because
    /// dropping their wakers is user code. Returns `false` if there is no such waiter.
    fn serve_next(&mut self, left: Left, served: &mut Vec<Waiter>) -> bool {
        let Self { queue, keyed, shares, cancelled, .. } = self;
        let may_have = |key| may_have(shares.as_ref(), PermitKind::Limited, key, left);
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
        self.count(PermitKind::Limited, waiter.key);
        served.push(Waiter { has_permit: true, ..waiter });
        true
    }

    /// Counts a permit of a key.
    fn count(&mut self, kind: PermitKind, key: Option<CallKey>) {
        if let (Some(shares), Some(key)) = (&mut self.shares, key) {
            shares.add(key, kind);
        }
    }

    /// Stops counting a permit of a key.
    fn uncount(&mut self, kind: PermitKind, key: CallKey) {
        if let Some(shares) = &mut self.shares {
            shares.remove(key, kind);
        }
    }

    /// Returns `true` if the group of a call has none of the limited permits in use. Calls without
    /// a key are one group.
    fn has_none(&self, key: Option<CallKey>, in_use: Permits) -> bool {
        self.shares.as_ref().is_some_and(|shares| match key {
            Some(key) => shares.has_none(key.group()),
            None => in_use.limited() == shares.all().limited(),
        })
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

/// Numbers of permits left.
#[derive(Debug, Clone, Copy)]
struct Left {
    of_capacity: usize,
    of_limit: usize,
}

impl Left {
    fn of(self, kind: PermitKind) -> usize {
        match kind {
            PermitKind::Limited => self.of_limit.min(self.of_capacity),
            PermitKind::Exempt => self.of_capacity,
        }
    }
}

/// Returns `true` if the key has not used its share. A key of limited permits has a share of the
/// limit as well.
fn may_have(shares: Option<&Shares>, kind: PermitKind, key: Option<CallKey>, left: Left) -> bool {
    let (Some(shares), Some(key)) = (shares, key) else { return true };
    shares.has_room(key, left.of_capacity)
        && (kind == PermitKind::Exempt || shares.has_limited_room(key, left.of_limit))
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

    /// Records that calls have keys. Written once, because the flag is read for each rejection.
    fn note_key(&self, key: Option<CallKey>) {
        if key.is_some() && !self.has_keys.load(Relaxed) {
            self.has_keys.store(true, Relaxed);
        }
    }

    fn try_acquire_locked(&self, kind: PermitKind, key: Option<CallKey>) -> Result<(), CallError> {
        if self.is_full(kind) {
            return Err(CallError::Overloaded);
        }
        let mut waiters = lock(&self.waiters);
        let (served, has_spare) = self.acquire_for(&mut waiters);
        let acquired = self.acquire_as(kind, key, &mut waiters, has_spare);
        drop(waiters);
        self.send(served);
        acquired
    }

    /// Returns `true` if no permit is left, also for a group without one. A spare is left.
    fn is_full(&self, kind: PermitKind) -> bool {
        // Without keys, no group but that of the call itself has permits.
        let has_groups = self.has_keys.load(Relaxed);
        let limit = if has_groups { self.limit().max(self.first_limit.load(Relaxed)) } else { self.limit() };
        let is_in_use = || self.is_in_use(|in_use| !self.has_room(kind, limit, in_use));
        // The second look is for a spare that was discarded before the last waiter was removed.
        is_in_use() && !self.has_waiters.load(Acquire) && is_in_use()
    }

    /// Acquires a permit for a call that does not wait, after `acquire_for` has served waiters.
    fn acquire_as(
        &self,
        kind: PermitKind,
        key: Option<CallKey>,
        waiters: &mut Waiters,
        has_spare: bool,
    ) -> Result<(), CallError> {
        let is_limited = kind == PermitKind::Limited;
        let first_limit = self.first_limit.load(Relaxed);
        let acquired = if is_limited
            && !has_spare
            && waiters.len() == 0
            && waiters.has_none(key, self.in_use())
            && self.acquire_below(kind, first_limit)
        {
            Ok(())
        } else {
            let left = self.left(has_spare);
            // The waiters get the next limited permit.
            let is_next = has_spare || !is_limited || waiters.len() == 0;
            // Checked before a permit is acquired, so that other threads are not refused it.
            if !is_next || left.of(kind) == 0 {
                Err(CallError::Overloaded)
            } else if !may_have(waiters.shares.as_ref(), kind, key, left) {
                Err(CallError::KeyLimited)
            } else if has_spare {
                self.change_limited_into(kind);
                Ok(())
            } else if self.acquire_unfair(kind) {
                Ok(())
            } else {
                Err(CallError::Overloaded)
            }
        };
        match acquired {
            Ok(()) => waiters.count(kind, key),
            Err(_) if has_spare => self.discard_spare(),
            Err(_) => {}
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

    /// Turns a limited permit that is in use and has no key into an exempt one, and serves waiters.
    pub(super) fn exempt(&self) {
        self.change_limited_into(PermitKind::Exempt);
        self.serve_waiters();
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
        self.note_key(key);
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
                    key.into_iter().for_each(|key| lock(&self.waiters).uncount(PermitKind::Limited, key));
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
        while !has_spare && waiters.len() > 0 && self.acquire_unfair(PermitKind::Limited) {
            has_spare = !waiters.serve_next(self.left(true), &mut served);
        }
        if waiters.len() == 0 {
            if std::mem::take(&mut has_spare) {
                self.discard_spare();
            }
            // After the spare was discarded: a thread that sees this sees that. Written only if it
            // changes, because every release reads it.
            if self.has_waiters.load(Relaxed) {
                self.has_waiters.store(false, Release);
            }
        }
        (served, has_spare)
    }

    /// Returns the numbers of permits left. The spare, if this thread has it, is one of them.
    fn left(&self, has_spare: bool) -> Left {
        let (in_use, spare) = (self.in_use(), usize::from(has_spare));
        Left {
            of_capacity: self.capacity.saturating_sub(in_use.total().saturating_sub(spare)),
            of_limit: self.limit().saturating_sub(in_use.limited().saturating_sub(spare)),
        }
    }

    /// Changes a limited permit, such as the spare, into one of this kind.
    fn change_limited_into(&self, kind: PermitKind) {
        let change = kind.unit().wrapping_sub(PermitKind::Limited.unit());
        self.acquire.acquired.fetch_add(change, AcqRel);
    }

    /// Undoes the acquisition of the spare. Not by a release, because the numbers of acquired and
    /// released permits are those of calls.
    fn discard_spare(&self) {
        self.acquire.acquired.fetch_sub(PermitKind::Limited.unit(), AcqRel);
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
            self.semaphore.release_share(PermitKind::Limited, self.key);
        } else {
            self.semaphore.on_cancel();
        }
    }
}
