use std::task::{Context, Waker};

use crate::{
    panic::ignore_panic,
    pool::error::CancelReason,
    sync::{AtomicU8, Ordering, UnsafeCell},
};

/// An entry of the call is queued, or the thread that runs the call will queue it. Set by the
/// thread that schedules the call, cleared by the thread that takes the entry. A call therefore has
/// at most one entry.
const SCHEDULED: u8 = 1;
/// A thread polls or drops the future. Set when an entry is taken, cleared when the future is
/// parked.
const RUNNING: u8 = 1 << 1;
/// The future is dropped and the output is stored. Set once and never cleared. The other bits have
/// no meaning from then on.
const COMPLETE: u8 = 1 << 2;
/// The caller has dropped its handle. Set once, by the caller.
const ABANDONED: u8 = 1 << 3;
/// The caller has dropped its handle, and the work is no longer wanted. Set once, by the caller.
const CANCELLED: u8 = 1 << 4;
/// No thread has taken the first entry. Set at creation. Cleared by the thread that takes the
/// entry, or by a caller that leaves before that and drops the future itself.
const UNSTARTED: u8 = 1 << 5;
/// The deadline has passed, and the call ends because of it. Set once, by the first of the caller
/// and the thread that takes the first entry. The caller sets it before it is answered and before
/// `CANCELLED`. A call that is `UNSTARTED` then never starts.
const EXPIRED: u8 = 1 << 6;

/// `caller` holds a waker that the thread which completes the call takes. Set and cleared by the
/// caller.
const HAS_WAKER: u8 = 1 << 7;

/// Ownership and completion state of a call: which thread may access the future, and who notifies
/// the caller.
///
/// Invariants:
///
/// * From `begin` to `park` or `complete`, one thread owns the future. `begin` is called only by
///   the thread that took the entry.
/// * A caller that drops its handle while the call is `UNSTARTED` owns the future instead. `begin`
///   then returns `Begin::Nothing`.
/// * A wake-up during `RUNNING` is not lost: `park` sees `SCHEDULED`, and the running thread queues
///   the call again.
/// * Of `complete` and `drop_caller`, the second sees the first. Exactly one of caller and pool
///   drops the output.
#[derive(Debug)]
pub(super) struct CallState {
    bits: AtomicU8,
    /// Waker of the caller, which owns this field while `HAS_WAKER` is not set. The thread that
    /// sets `COMPLETE` while `HAS_WAKER` is set owns it from then on.
    ///
    /// `complete` sets `COMPLETE` and returns `HAS_WAKER`. `poll_complete` stores the waker, sets
    /// `HAS_WAKER` and returns `COMPLETE`. Exactly one of them sees the other's bit.
    caller: UnsafeCell<Option<CallerWaker>>,
}

// SAFETY: Only `caller` is not `Sync`. Its owner is the only thread that accesses it, and the bits
// that change its owner are changed with `AcqRel`.
#[allow(unsafe_code)]
unsafe impl Sync for CallState {}

/// Waker of a caller whose call is complete.
#[derive(Debug)]
pub(crate) struct CallerWaker {
    pub(crate) waker: Waker,
    /// `true` if the task that awaits the call also made it.
    pub(crate) is_maker: bool,
}

impl CallerWaker {
    /// Wakes the caller. Its waker is user code.
    pub(crate) fn wake(self) {
        ignore_panic(|| self.waker.wake());
    }
}

/// Obligation of the thread that took an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Poll the future.
    Poll,
    /// The caller was answered at its deadline before the call started: fail the call.
    Expire,
    /// The caller has cancelled the call: drop the future, then `complete`.
    Drop,
    /// The caller has dropped the future before the call started.
    Nothing,
}

/// Obligation of the thread whose poll returned `Pending`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Park {
    /// None. A later wake-up schedules the call.
    Parked,
    /// The call was woken while it ran: queue it.
    Schedule,
    /// The caller has cancelled the call while it ran: drop the future, which this thread still
    /// owns, then `complete`.
    Cancelled,
}

/// Effect of a dropped handle on the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCallerDrop {
    /// The call is cancelled. If it has not started, the caller drops its future, because the
    /// future's values were the caller's own until the call was made.
    Cancel,
    /// The call is cancelled, and its future is always dropped on the pool, because its destructor
    /// may block.
    CancelOnPool,
    /// The call continues.
    Detach,
}

/// Obligation of a caller that drops its handle.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DropAction {
    /// The call has not started and no thread will access its future: drop it. The call is
    /// complete.
    DropFuture,
    /// Queue the call, so that its future is dropped on the pool.
    Schedule,
    /// None. The pool drops future and output.
    None,
    /// The call is complete: drop its output.
    DropOutput,
}

impl CallState {
    /// Returns the state of a call that is about to be queued for the first time.
    pub(super) fn scheduled() -> Self {
        Self { bits: AtomicU8::new(SCHEDULED | UNSTARTED), caller: UnsafeCell::new(None) }
    }

    /// Takes the queue entry.
    #[inline]
    pub(super) fn begin(&self) -> Begin {
        let begun = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            (bits & COMPLETE == 0).then_some(bits & !(SCHEDULED | UNSTARTED) | RUNNING)
        });
        match begun {
            Err(_) => Begin::Nothing,
            Ok(before) => {
                debug_assert_eq!(before & (SCHEDULED | RUNNING), SCHEDULED, "an entry was taken twice");
                if before & (CANCELLED | EXPIRED) == 0 {
                    Begin::Poll
                } else if before & CANCELLED != 0 {
                    Begin::Drop
                } else if before & UNSTARTED != 0 {
                    Begin::Expire
                } else {
                    Begin::Poll
                }
            }
        }
    }

    /// Releases the future after a poll that returned `Pending`.
    pub(super) fn park(&self) -> Park {
        let parked = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            (bits & CANCELLED == 0).then_some(bits & !RUNNING)
        });
        match parked {
            Err(_) => Park::Cancelled,
            Ok(before) if before & SCHEDULED != 0 => Park::Schedule,
            Ok(_) => Park::Parked,
        }
    }

    /// Publishes the output. Returns `true` if the caller has dropped its handle, and otherwise the
    /// waker to be woken, if the caller is waiting.
    #[inline]
    pub(super) fn complete(&self) -> (bool, Option<CallerWaker>) {
        let before = self.bits.fetch_or(COMPLETE, Ordering::AcqRel);
        let caller = if before & (HAS_WAKER | COMPLETE) == HAS_WAKER {
            // SAFETY: This thread has set `COMPLETE` while `HAS_WAKER` was set, and no other can.
            #[allow(unsafe_code)]
            self.caller.with_mut(|caller| unsafe { (*caller).take() })
        } else {
            None
        };
        (before & ABANDONED != 0, caller)
    }

    /// Wakes the call. Returns `true` if the thread must queue it.
    pub(super) fn wake(&self) -> bool {
        // An unconditional read-modify-write, because the next poll must also see the writes that
        // precede a wake-up which changes nothing.
        self.bits.fetch_or(SCHEDULED, Ordering::AcqRel) & (SCHEDULED | RUNNING | COMPLETE) == 0
    }

    /// Records that the caller has dropped its handle.
    pub(super) fn drop_caller(&self, on_drop: OnCallerDrop) -> DropAction {
        let dropped = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| match on_drop {
            _ if bits & COMPLETE != 0 => None,
            OnCallerDrop::Cancel if bits & UNSTARTED != 0 => Some(bits & !UNSTARTED | ABANDONED | CANCELLED | COMPLETE),
            OnCallerDrop::Cancel | OnCallerDrop::CancelOnPool => Some(bits | ABANDONED | CANCELLED | SCHEDULED),
            OnCallerDrop::Detach => Some(bits | ABANDONED),
        });
        match (dropped, on_drop) {
            (Err(_), _) => DropAction::DropOutput,
            (Ok(_), OnCallerDrop::Detach) => DropAction::None,
            (Ok(before), OnCallerDrop::Cancel) if before & UNSTARTED != 0 => DropAction::DropFuture,
            (Ok(before), _) if before & (SCHEDULED | RUNNING) != 0 => DropAction::None,
            (Ok(_), _) => DropAction::Schedule,
        }
    }

    /// Returns `true` if the output is published. Otherwise stores the waker of the caller.
    /// `is_maker` returns `true` if the polling task also made the call.
    ///
    /// # Safety
    ///
    /// Only one thread at a time may call it.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) unsafe fn poll_complete(&self, cx: &mut Context<'_>, is_maker: impl FnOnce() -> bool) -> bool {
        let bits = self.bits.load(Ordering::Acquire);
        if bits & COMPLETE != 0 {
            return true;
        }
        // Cloning a waker is user code, which may panic. Nothing has changed by then.
        let caller = CallerWaker { waker: cx.waker().clone(), is_maker: is_maker() };
        if bits & HAS_WAKER != 0 && self.bits.fetch_and(!HAS_WAKER, Ordering::AcqRel) & COMPLETE != 0 {
            return true; // `complete` takes the waker of the last poll.
        }
        // SAFETY: `HAS_WAKER` is not set, and was not when the call completed, if it has.
        let replaced = self.caller.with_mut(|stored| unsafe { (*stored).replace(caller) });
        let is_complete = self.bits.fetch_or(HAS_WAKER, Ordering::AcqRel) & COMPLETE != 0;
        drop(replaced); // User code, so last.
        is_complete
    }

    #[inline]
    pub(super) fn is_complete(&self) -> bool {
        self.bits.load(Ordering::Acquire) & COMPLETE != 0
    }

    #[inline]
    pub(super) fn is_abandoned(&self) -> bool {
        self.bits.load(Ordering::Acquire) & ABANDONED != 0
    }

    /// Records that the call ends because of its deadline. Returns `true` the first time: the
    /// thread must then count the rejection.
    #[cold]
    pub(super) fn expire(&self) -> bool {
        self.bits.fetch_or(EXPIRED, Ordering::AcqRel) & EXPIRED == 0
    }

    /// Returns `true` if a thread has taken the first entry, or the caller has dropped the future.
    pub(super) fn has_begun(&self) -> bool {
        self.bits.load(Ordering::Acquire) & UNSTARTED == 0
    }

    /// Returns why the caller has cancelled the call, if it has.
    pub(super) fn cancel_reason(&self) -> Option<CancelReason> {
        let bits = self.bits.load(Ordering::Acquire);
        let reason = if bits & EXPIRED == 0 { CancelReason::CallerLeft } else { CancelReason::DeadlineExceeded };
        (bits & CANCELLED != 0).then_some(reason)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.bits.load(Ordering::Acquire) & CANCELLED != 0
    }
}
