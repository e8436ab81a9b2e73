use std::task::{Context, Waker};

use crate::sync::{AtomicU8, Mutex, Ordering, lock};

/// An entry for the call stands in a queue, or will be put there by the thread that runs it. Set by whoever schedules,
/// cleared by the thread that takes the entry: so a call has at most one entry.
const SCHEDULED: u8 = 1;
/// A thread polls or drops the future. Set when an entry is taken, cleared when the future is parked.
const RUNNING: u8 = 1 << 1;
/// The future is gone and the output stands in the stage. Set once, never cleared; every other bit is meaningless then.
const FINISHED: u8 = 1 << 2;
/// The caller left. Set once, by the caller.
const ABANDONED: u8 = 1 << 3;
/// The caller left and the work is not wanted any more. Set once, by the caller.
const CANCELLED: u8 = 1 << 4;
/// No thread has taken the first queue entry. Set at birth; cleared by the thread that takes it, or by a caller that
/// leaves before and takes the future back.
const FRESH: u8 = 1 << 5;

/// Who may touch a call's future, and who has to tell whom that it is done.
///
/// Invariants:
/// * From `begin` to `park` or `finish` one thread owns the future; `begin` is called only for a taken queue entry.
/// * A caller that leaves while the call is `FRESH` owns the future instead: `begin` then says that there is nothing to do.
/// * A wake during `RUNNING` is not lost: `park` sees `SCHEDULED` and the running thread schedules again.
/// * Of `finish` and `leave` the second one sees the first: exactly one of caller and pool disposes of the output.
/// * `finish` and `poll_finished` never miss each other: one sets the bit and then takes the waker, the other stores
///   the waker and then reads the bit.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    bits: AtomicU8,
    caller: Mutex<Option<Caller>>,
}

/// Whom to wake.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) waker: Waker,
    /// Whether it is the task that made the call.
    pub(crate) is_task: bool,
}

/// What the thread has to do that took a queue entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Drop the future, then `finish`: the caller left.
    Drop,
    /// Nothing: the caller left before the call started, and took everything with it.
    Nothing,
    /// Poll the future.
    Poll,
}

/// What the thread has to do that found its future pending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Park {
    /// The caller left meanwhile: drop the future, then `finish`. The future is still this thread's.
    Cancelled,
    /// Nothing: a later wake schedules the call.
    Parked,
    /// Put the call into the queue: it was woken while it ran.
    Schedule,
}

/// What becomes of a call whose caller leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It is cancelled. If it never started, the caller drops it: what is in it was the caller's a moment ago.
    Cancel,
    /// It is cancelled, and dropped on the pool in any case: what is in it may block when it is dropped.
    CancelOnPool,
    /// It goes on.
    Detach,
}

/// What a caller has to do that leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Dispose of the output: it is the caller's.
    Finished,
    /// Nothing: the pool disposes of everything.
    Left,
    /// Drop the future: it never started, and no thread will touch it. The call is finished.
    Reclaim,
    /// Put the call into the queue, so that its future is dropped on the pool.
    Schedule,
}

impl Lifecycle {
    /// A call that is about to be put into a queue for the first time.
    pub(crate) fn scheduled() -> Self {
        Self { bits: AtomicU8::new(SCHEDULED | FRESH), caller: Mutex::new(None) }
    }

    /// Takes the queue entry.
    pub(crate) fn begin(&self) -> Begin {
        let begun = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            (bits & FINISHED == 0).then_some(bits & !(SCHEDULED | FRESH) | RUNNING)
        });
        match begun {
            Err(_) => Begin::Nothing,
            Ok(before) => {
                debug_assert_eq!(before & (SCHEDULED | RUNNING), SCHEDULED, "a job ran twice");
                if before & CANCELLED == 0 { Begin::Poll } else { Begin::Drop }
            }
        }
    }

    /// Gives the future back after a `Pending`.
    pub(crate) fn park(&self) -> Park {
        let parked = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            (bits & CANCELLED == 0).then_some(bits & !RUNNING)
        });
        match parked {
            Err(_) => Park::Cancelled,
            Ok(before) if before & SCHEDULED != 0 => Park::Schedule,
            Ok(_) => Park::Parked,
        }
    }

    /// Says that the output stands. Returns whether the caller has left, and else whom to wake.
    pub(crate) fn finish(&self) -> (bool, Option<Caller>) {
        let before = self.bits.fetch_or(FINISHED, Ordering::AcqRel);
        (before & ABANDONED != 0, lock(&self.caller).take())
    }

    /// `true` if the call has to be put into a queue now.
    pub(crate) fn wake(&self) -> bool {
        // An unconditional read-modify-write: also a wake that changes nothing must be seen by the poll that follows.
        self.bits.fetch_or(SCHEDULED, Ordering::AcqRel) & (SCHEDULED | RUNNING | FINISHED) == 0
    }

    /// The caller goes away.
    pub(crate) fn leave(&self, departure: Departure) -> Leave {
        let left = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| match departure {
            _ if bits & FINISHED != 0 => None,
            Departure::Detach => Some(bits | ABANDONED),
            Departure::Cancel if bits & FRESH != 0 => Some(bits & !FRESH | ABANDONED | CANCELLED | FINISHED),
            Departure::Cancel | Departure::CancelOnPool => Some(bits | ABANDONED | CANCELLED | SCHEDULED),
        });
        match (left, departure) {
            (Err(_), _) => Leave::Finished,
            (Ok(_), Departure::Detach) => Leave::Left,
            (Ok(before), Departure::Cancel) if before & FRESH != 0 => Leave::Reclaim,
            (Ok(before), _) if before & (SCHEDULED | RUNNING) != 0 => Leave::Left,
            (Ok(_), _) => Leave::Schedule,
        }
    }

    /// Whether the output stands; if not, the caller is woken when it does.
    pub(crate) fn poll_finished(&self, cx: &mut Context<'_>, is_task: bool) -> bool {
        if self.is_finished() {
            return true;
        }
        // A waker is foreign code, its clone and its drop: not under the lock.
        let caller = Caller { waker: cx.waker().clone(), is_task };
        let replaced = lock(&self.caller).replace(caller);
        drop(replaced);
        self.is_finished()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.bits.load(Ordering::Acquire) & FINISHED != 0
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.bits.load(Ordering::Acquire) & ABANDONED != 0
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.bits.load(Ordering::Acquire) & CANCELLED != 0
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
