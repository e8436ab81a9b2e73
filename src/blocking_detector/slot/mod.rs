//! The running steps of a thread, readable by another thread.
//!
//! A step must cost little, and the watchdog must be able to read the name of a step whose thread
//! never returns. The owner of a [`Slot`] therefore links a [`Frame`] on its stack, which borrows
//! what is watched, and unlinks it when the step ends. Nothing is copied, allocated or locked.
//! Nested steps form a list, from the innermost outwards.
//!
//! # Protocol
//!
//! `top` is the only shared word, and every change of it is a compare-and-swap, or a store by the
//! thread that alone may change the present value.
//!
//! | `top` | meaning | may change it |
//! |---|---|---|
//! | a frame | the innermost step | the owner (to link, unlink), the watchdog (to inspect) |
//! | `INSPECTED` | the watchdog reads the frames | the watchdog, back to the frame |
//! | `IDLE` | no step runs | the owner (to link), the watchdog (to `STALE`) |
//! | `STALE` | no step since the last visit | the owner (to link), the watchdog (to detach) |
//! | `DETACHED` | no watchdog visits the slot | the owner, which attaches it |
//!
//! A frame and what it borrows are valid while the frame is linked, because the owner returns only
//! after it has unlinked the frame, and it cannot unlink a frame while the slot is inspected. The
//! owner then waits, for as long as it takes to visit a few frames.

#[cfg(all(test, tower_offload_loom))]
mod loom;

use std::{
    cell::{Cell, UnsafeCell},
    fmt, process,
    ptr::{self, NonNull},
};

use crate::sync::{
    AtomicPtr,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    spin_loop, thread,
};

/// Values of `top` that are no frame. No frame has such an address.
const IDLE: usize = 0;
const STALE: usize = 1;
const DETACHED: usize = 2;
const INSPECTED: usize = 3;

/// Number of times that the owner looks for the end of a visit before it yields its processor.
const MAX_SPINS: u32 = 64;

/// The running steps of one thread, the owner. Each step watches a `W`, and the watchdog keeps
/// a note `N` for it.
pub(super) struct Slot<W, N> {
    top: AtomicPtr<Frame<W, N>>,
    /// The process of the watchdog that may inspect the slot. A forked process has no such thread.
    process: u32,
}

/// A linked step, on the stack of the owner.
struct Frame<W, N> {
    /// Borrowed by [`Slot::run`], which outlives the frame.
    watched: NonNull<W>,
    /// Accessed only by the watchdog, while the slot is inspected.
    note: UnsafeCell<N>,
    /// The step in which this one runs, or `IDLE`. Constant once the frame is linked.
    outer: Cell<*mut Frame<W, N>>,
}

/// The result of a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// A step runs, or has run since the last visit.
    Active,
    /// No step has run since the last visit.
    Idle,
}

impl<W: Sync, N: Default + Send> Slot<W, N> {
    /// Creates a detached slot.
    pub(super) fn new() -> Self {
        Self { top: AtomicPtr::new(state(DETACHED)), process: process::id() }
    }

    /// Runs `work` as a step that watches `watched`. Called by the owner only.
    ///
    /// Calls `attach` if the slot is detached. If it still is afterwards, the step is not watched.
    #[inline]
    pub(super) fn run<T>(&self, watched: &W, attach: impl FnOnce(), work: impl FnOnce() -> T) -> T {
        let frame = Frame {
            watched: NonNull::from(watched),
            note: UnsafeCell::new(N::default()),
            outer: Cell::new(state(IDLE)),
        };
        let this = ptr::from_ref(&frame).cast_mut();
        let linked = self.top.compare_exchange(state(IDLE), this, AcqRel, Relaxed).is_ok()
            || self.link_unless_idle(&frame, attach);
        let _unlink = linked.then(|| Unlink { slot: self, frame: &frame });
        work()
    }

    /// Links a frame to a slot in any state. Returns `false` if the step cannot be
    /// watched.
    #[cold]
    fn link_unless_idle(&self, frame: &Frame<W, N>, attach: impl FnOnce()) -> bool {
        let this = ptr::from_ref(frame).cast_mut();
        let (mut attach, mut spins) = (Some(attach), 0);
        loop {
            let top = self.top.load(Acquire);
            match top.addr() {
                DETACHED => match attach.take() {
                    Some(attach) => attach(),
                    None => return false,
                },
                INSPECTED if self.is_abandoned(&mut spins) => return false,
                INSPECTED => {}
                address => {
                    frame.outer.set(if address == STALE { state(IDLE) } else { top });
                    if self.top.compare_exchange(top, this, AcqRel, Relaxed).is_ok() {
                        return true;
                    }
                }
            }
        }
    }

    /// Attaches a detached slot. Called by the owner, within `attach` of [`run`](Self::run).
    pub(super) fn attach(&self) {
        self.top.store(state(IDLE), Release);
    }

    /// Calls `visit` for each step that runs now, from the innermost outwards. The owner waits if
    /// a step ends or begins meanwhile.
    ///
    /// If the owner changes the slot at the same time, it is not stuck, and nothing is visited.
    pub(super) fn visit(&self, mut visit: impl FnMut(&W, &mut N)) -> Visit {
        let top = self.top.load(Relaxed);
        match top.addr() {
            STALE | DETACHED => return Visit::Idle,
            IDLE => {
                let _ = self.top.compare_exchange(top, state(STALE), AcqRel, Relaxed);
                return Visit::Active;
            }
            INSPECTED => return Visit::Active,
            _ => {}
        }
        // The exchange returns the pointer to the frame that is linked now. `top` may point to an
        // earlier frame at the same address.
        let Ok(top) = self.top.compare_exchange(top, state(INSPECTED), AcqRel, Relaxed) else { return Visit::Active };
        let _release = EndVisit { slot: self, top };
        let mut next = top;
        while next.addr() != IDLE {
            // SAFETY: this thread has replaced `top`, a linked frame, with `INSPECTED`. Until
            // `EndVisit` puts it back, the owner unlinks no frame, so all frames of the list are
            // alive, and so is what they borrow. `W` is `Sync`. No other thread accesses a note,
            // since only the thread that has made the exchange does, and `N` is `Send`.
            #[allow(unsafe_code)]
            let (watched, note, outer) = unsafe {
                let frame = &*next;
                (frame.watched.as_ref(), &mut *frame.note.get(), frame.outer.get())
            };
            visit(watched, note);
            next = outer;
        }
        Visit::Active
    }

    /// Detaches the slot if no step has run since the last visit. From then on, the owner attaches
    /// it before its next step.
    pub(super) fn try_detach(&self) -> bool {
        self.top.compare_exchange(state(STALE), state(DETACHED), AcqRel, Relaxed).is_ok()
    }
}

impl<W, N> Slot<W, N> {
    #[cold]
    fn unlink_inspected(&self, frame: *mut Frame<W, N>, outer: *mut Frame<W, N>) {
        let mut spins = 0;
        while self.top.compare_exchange(frame, outer, AcqRel, Relaxed).is_err() {
            if self.is_abandoned(&mut spins) {
                self.top.store(outer, Release);
                return;
            }
        }
    }

    /// Waits a moment for the end of a visit. Returns `true` if the visit never ends, because this
    /// is a fork of the process whose watchdog has begun it.
    fn is_abandoned(&self, spins: &mut u32) -> bool {
        *spins += 1;
        if *spins < MAX_SPINS && !cfg!(tower_offload_loom) {
            spin_loop();
            return false;
        }
        *spins = 0;
        thread::yield_now();
        process::id() != self.process
    }
}

/// Unlinks a frame when its step has ended, also by a panic.
struct Unlink<'a, W, N> {
    slot: &'a Slot<W, N>,
    frame: &'a Frame<W, N>,
}

impl<W, N> Drop for Unlink<'_, W, N> {
    #[inline]
    fn drop(&mut self) {
        let (frame, outer) = (ptr::from_ref(self.frame).cast_mut(), self.frame.outer.get());
        if self.slot.top.compare_exchange(frame, outer, AcqRel, Relaxed).is_err() {
            self.slot.unlink_inspected(frame, outer);
        }
    }
}

/// Puts the innermost frame back when a visit has ended, also by a panic.
struct EndVisit<'a, W, N> {
    slot: &'a Slot<W, N>,
    top: *mut Frame<W, N>,
}

impl<W, N> Drop for EndVisit<'_, W, N> {
    fn drop(&mut self) {
        self.slot.top.store(self.top, Release);
    }
}

fn state<F>(value: usize) -> *mut F {
    ptr::without_provenance_mut(value)
}

impl<W, N> fmt::Debug for Slot<W, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}
