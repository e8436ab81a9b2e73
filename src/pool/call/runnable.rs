use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{runtime::Handle, time::Instant};

use super::state::CallerWaker;
use crate::pool::{
    clock::Clock,
    deadline::Deadline,
    error::{CallError, CancelReason},
    key::CallKey,
    nested::NestedWaits,
    priority::Priority,
    scheduler::Class,
    time::PoolTime,
};

/// Entry of a call in a pool's queue: one poll of its future. Created for the pool, which passes it
/// to [`Pool::schedule`](crate::pool::Pool::schedule).
///
/// A runnable that is dropped without being run fails its call with [`CallError::Closed`], so no
/// caller waits forever.
pub struct Runnable(Option<Arc<dyn RawCall>>);

/// The part of a call that its queue entry uses, independent of the future's type.
pub(in crate::pool) trait RawCall: Send + Sync {
    fn header(&self) -> &Header;

    /// Polls or drops the future. Returns the waker of a caller that must be woken next.
    ///
    /// The entry releases its reference to the call before the caller is woken. The caller then
    /// frees the allocation on the thread that made it, which avoids contention for the allocator's
    /// lock.
    ///
    /// `clock` is that of the worker. `None` on a thread that runs no other calls before and after.
    fn run(self: Arc<Self>, clock: Option<&mut Clock>) -> Option<CallerWaker>;

    /// Drops the future and fails the call with `error`. Returns like `run`.
    fn refuse(self: Arc<Self>, error: CallError) -> Option<CallerWaker>;

    /// Returns the time at which the call was made.
    fn created(&self) -> Instant;

    fn is_cancelled(&self) -> bool;

    /// Returns the deadline that the work has: none in a detached call, which would otherwise fail
    /// after its caller has left.
    fn work_deadline(&self) -> Deadline;

    /// Returns why the work is no longer wanted, if it is not.
    fn cancel_reason(&self) -> Option<CancelReason>;

    /// Returns the waits of its pool's calls for each other.
    fn nested_waits(&self) -> &NestedWaits;
}

/// Properties of a call that queues and workers read.
pub(in crate::pool) struct Header {
    pub(super) priority: Priority,
    pub(super) key: Option<CallKey>,
    /// Runtime in which the call was made. Kept until the allocation is freed, usually by the
    /// caller, so that the runtime's reference count is not passed between cores.
    pub(super) runtime: Option<Handle>,
    pub(super) created: PoolTime,
    pub(super) deadline: Deadline,
    /// `true` if an overload has no effect on the call, because it was accepted before it reached
    /// the pool.
    pub(super) is_exempt: bool,
    /// `true` if the work continues without its caller. The deadline then ends when it starts.
    pub(super) is_detached: bool,
    /// `true` once the future was polled. Written only by the thread that has taken the entry.
    pub(super) started: AtomicBool,
    /// `true` while a poll or a drop is recorded as waiting for another call of the same pool.
    /// Written only by the thread that polls or drops.
    pub(super) waits_nested: AtomicBool,
}

impl Header {
    #[inline]
    pub(super) fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }
}

impl Runnable {
    pub(super) fn new(call: Arc<dyn RawCall>) -> Self {
        Self(Some(call))
    }

    /// Polls the call once, on this thread. Drops it instead if its caller has left or the pool is
    /// halted. Never unwinds.
    pub fn run(self) {
        if let Some(caller) = self.run_without_wake(None) {
            caller.wake();
        }
    }

    /// Drops the call on this thread and fails it with `error`. Never unwinds.
    pub fn refuse(mut self, error: CallError) {
        self.take_and_refuse(error);
    }

    /// Returns `true` if the call was polled before. Only calls that have not started may be shed
    /// or reordered: a pool runs woken calls before new ones.
    pub fn has_started(&self) -> bool {
        self.header().is_some_and(Header::has_started)
    }

    /// Returns the priority that the call was made with.
    pub fn priority(&self) -> Priority {
        self.header().map_or(Priority::Normal, |header| header.priority)
    }

    /// Returns `true` if the caller has left. Running the entry then only drops the call.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|call| call.is_cancelled())
    }

    /// Like `run`, but leaves it to the worker to wake the caller.
    pub(in crate::pool) fn run_without_wake(mut self, clock: Option<&mut Clock>) -> Option<CallerWaker> {
        self.0.take().and_then(|call| call.run(clock))
    }

    /// Returns the properties that decide where the entry waits, by one virtual call.
    pub(in crate::pool) fn class(&self) -> Class {
        self.header().map_or_else(Class::default, |header| Class {
            priority: header.priority,
            key: header.key,
            is_woken: header.has_started(),
        })
    }

    /// Returns `true` if an overload has no effect on the call.
    pub(in crate::pool) fn is_exempt(&self) -> bool {
        self.header().is_some_and(|header| header.is_exempt)
    }

    /// Returns the runtime in which the call was made.
    pub(in crate::pool) fn runtime(&self) -> Option<&Handle> {
        self.header()?.runtime.as_ref()
    }

    /// Returns the time at which the call was made.
    pub(in crate::pool) fn created(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, |call| call.created())
    }

    fn header(&self) -> Option<&Header> {
        self.0.as_ref().map(|call| call.header())
    }

    fn take_and_refuse(&mut self, error: CallError) {
        if let Some(caller) = self.0.take().and_then(|call| call.refuse(error)) {
            caller.wake();
        }
    }
}

impl Drop for Runnable {
    fn drop(&mut self) {
        self.take_and_refuse(CallError::Closed);
    }
}

impl fmt::Debug for Runnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runnable")
            .field("has_started", &self.has_started())
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}
