//! Interleaves one call, a thread that runs it, a waker, and a caller that may leave.

use std::{
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use loom::{cell::UnsafeCell, future::block_on, thread};

use super::{
    exclusive::Exclusive,
    state::{Begin, CallState, DropAction, OnCallerDrop, Park},
};
use crate::pool::error::CancelReason;

/// A call with loom's cell in place of its stage. Loom reports concurrent access to the cell as an
/// error.
struct Model {
    state: CallState,
    future: UnsafeCell<u32>,
    /// Polls until the future is ready.
    polls: u32,
    /// Number of entries that were queued and have not run.
    entries: AtomicUsize,
    outputs: AtomicUsize,
    /// 1 once the future was polled.
    starts: AtomicUsize,
}

#[derive(Debug, PartialEq, Eq)]
enum RunResult {
    /// The entry was queued again, and this thread runs it.
    Again,
    Ended,
    Parked,
}

impl Model {
    fn new(polls: u32) -> Arc<Self> {
        Arc::new(Self {
            state: CallState::scheduled(),
            future: UnsafeCell::new(0),
            polls,
            entries: AtomicUsize::new(1),
            outputs: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
        })
    }

    /// Runs an entry like `Call::run`.
    fn run(&self) -> RunResult {
        assert_eq!(self.entries.fetch_sub(1, SeqCst), 1, "two entries for one call");
        let begin = self.state.begin();
        if begin == Begin::Nothing {
            return RunResult::Ended;
        }
        if begin == Begin::Poll {
            self.starts.store(1, SeqCst);
        }
        let ready = self.future.with_mut(|polled| {
            // SAFETY: `CallState` gives one thread at a time access to the future. Loom checks it.
            #[allow(unsafe_code)]
            let polled = unsafe { &mut *polled };
            *polled += 1;
            *polled >= self.polls
        });
        if begin == Begin::Poll && !ready {
            match self.state.park() {
                Park::Parked => return RunResult::Parked,
                Park::Schedule => {
                    self.entries.fetch_add(1, SeqCst);
                    return RunResult::Again;
                }
                Park::Cancelled => {}
            }
        }
        self.outputs.fetch_add(1, SeqCst);
        let (is_abandoned, caller) = self.state.complete();
        if is_abandoned {
            assert_eq!(self.outputs.fetch_sub(1, SeqCst), 1, "the output was dropped twice");
        }
        if let Some(caller) = caller {
            caller.waker.wake();
        }
        RunResult::Ended
    }

    /// Runs an entry like a worker, and again while it is queued again.
    fn work(&self) {
        while self.run() == RunResult::Again {}
    }

    /// Runs the first entry like `Call::expire`, and counts the rejection if it is the first to.
    fn expire(&self, rejections: &AtomicUsize) {
        let begin = self.state.begin();
        if begin == Begin::Nothing {
            return;
        }
        if matches!(begin, Begin::Poll | Begin::Expire) && self.state.expire() {
            rejections.fetch_add(1, SeqCst);
        }
        // SAFETY: Like in `run`.
        #[allow(unsafe_code)]
        self.future.with_mut(|future| unsafe { *future += 1 });
        self.outputs.fetch_add(1, SeqCst);
        if self.state.complete().0 {
            assert_eq!(self.outputs.fetch_sub(1, SeqCst), 1, "the output was dropped twice");
        }
    }

    fn wake(&self) {
        if self.state.wake() {
            self.entries.fetch_add(1, SeqCst);
            self.work();
        }
    }

    fn poll_complete(&self, cx: &mut Context<'_>) -> bool {
        // SAFETY: Each model has one caller.
        #[allow(unsafe_code)]
        unsafe {
            self.state.poll_complete(cx, || true)
        }
    }

    fn drop_caller(&self, on_drop: OnCallerDrop) {
        match self.state.drop_caller(on_drop) {
            DropAction::DropOutput => {
                assert_eq!(self.outputs.fetch_sub(1, SeqCst), 1, "the output was dropped twice")
            }
            DropAction::None => {}
            DropAction::DropFuture => self.future.with_mut(|polled| {
                // SAFETY: Like in `run`.
                #[allow(unsafe_code)]
                let polled = unsafe { &mut *polled };
                assert_eq!(*polled, 0, "the call had started");
            }),
            DropAction::Schedule => {
                self.entries.fetch_add(1, SeqCst);
                self.work();
            }
        }
    }
}

#[test]
fn wake_up_at_any_moment_leads_to_a_second_poll() {
    loom::model(|| {
        let call = Model::new(2);
        let waker = thread::spawn({
            let call = call.clone();
            move || call.wake()
        });
        // A wake-up of a call that is queued has no effect. This thread therefore wakes the call
        // again, in case the other wake-up preceded the first poll.
        call.work();
        waker.join().unwrap();
        call.wake();
        assert!(call.state.is_complete());
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (1, 0));
    });
}

#[test]
fn two_wakers_and_a_worker_never_poll_at_once() {
    loom::model(|| {
        let call = Model::new(10);
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let call = call.clone();
                thread::spawn(move || call.wake())
            })
            .collect();
        call.work();
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
        assert_eq!(call.entries.load(SeqCst), 0);
    });
}

#[test]
fn caller_is_woken_at_completion() {
    loom::model(|| {
        let call = Model::new(1);
        let runner = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        // loom reports a `block_on` that is never woken as a deadlock.
        block_on(std::future::poll_fn(
            |cx: &mut Context<'_>| {
                if call.poll_complete(cx) { Poll::Ready(()) } else { Poll::Pending }
            },
        ));
        assert_eq!(call.outputs.load(SeqCst), 1);
        runner.join().unwrap();
    });
}

/// A caller that polls twice, like one whose task was woken by something else.
#[test]
fn caller_that_polls_again_is_woken_or_sees_the_end() {
    loom::model(|| {
        let call = Model::new(1);
        let runner = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        let mut polls = 0;
        block_on(std::future::poll_fn(|cx: &mut Context<'_>| {
            polls += 1;
            let is_complete = call.poll_complete(cx) || polls == 1 && call.poll_complete(cx);
            if is_complete { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_eq!(call.outputs.load(SeqCst), 1);
        runner.join().unwrap();
    });
}

fn caller_leaves_at_any_moment(on_drop: OnCallerDrop) {
    loom::model(move || {
        let call = Model::new(2);
        let runner = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        let waker = thread::spawn({
            let call = call.clone();
            move || call.wake()
        });
        call.drop_caller(on_drop);
        runner.join().unwrap();
        waker.join().unwrap();
        assert!(call.state.is_complete(), "the future was not dropped");
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (0, 0));
    });
}

#[test]
fn cancelled_call_is_dropped_completely() {
    caller_leaves_at_any_moment(OnCallerDrop::Cancel);
}

#[test]
fn call_cancelled_on_the_pool_is_dropped_completely() {
    caller_leaves_at_any_moment(OnCallerDrop::CancelOnPool);
}

#[test]
fn output_of_a_detached_call_is_dropped_once() {
    loom::model(|| {
        let call = Model::new(1);
        let runner = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        call.drop_caller(OnCallerDrop::Detach);
        runner.join().unwrap();
        assert!(call.state.is_complete());
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (0, 0));
    });
}

#[test]
fn expired_call_is_counted_once_and_dropped() {
    loom::model(|| {
        let (call, rejections) = (Model::new(1), Arc::new(AtomicUsize::new(0)));
        let worker = thread::spawn({
            let (call, rejections) = (call.clone(), rejections.clone());
            move || call.expire(&rejections)
        });
        // The caller's timer. Whether the worker has completed the call or not, its error is the
        // same.
        if call.state.expire() {
            rejections.fetch_add(1, SeqCst);
        }
        call.drop_caller(OnCallerDrop::Cancel);
        if let Some(reason) = call.state.cancel_reason() {
            assert_eq!(reason, CancelReason::DeadlineExceeded);
        }
        worker.join().unwrap();
        assert!(call.state.is_complete(), "the future was not dropped");
        assert_eq!((rejections.load(SeqCst), call.outputs.load(SeqCst)), (1, 0));
    });
}

#[test]
fn work_sees_the_deadline_and_not_that_its_caller_left() {
    loom::model(|| {
        let call = Model::new(1);
        assert_eq!(call.state.begin(), Begin::Poll);
        let worker = thread::spawn({
            let call = call.clone();
            move || assert_ne!(call.state.cancel_reason(), Some(CancelReason::CallerLeft))
        });
        call.state.expire();
        assert_eq!(call.state.drop_caller(OnCallerDrop::Cancel), DropAction::None);
        worker.join().unwrap();
        assert_eq!(call.state.cancel_reason(), Some(CancelReason::DeadlineExceeded));
    });
}

#[test]
fn detached_call_never_starts_after_its_caller_was_answered() {
    loom::model(|| {
        let call = Model::new(1);
        let worker = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        // The caller's timer. The worker has read its clock before the deadline.
        assert!(call.state.expire());
        let has_begun = call.state.has_begun();
        call.drop_caller(OnCallerDrop::Detach);
        worker.join().unwrap();
        assert!(has_begun || call.starts.load(SeqCst) == 0);
        assert!(call.state.is_complete());
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (0, 0));
    });
}

/// The value is loom's cell, which reports an access that is not ordered with the one before it.
#[test]
fn accesses_to_an_exclusive_value_are_ordered() {
    loom::model(|| {
        let slot = Arc::new(MaybeUninit::<Exclusive<UnsafeCell<u32>>>::uninit());
        // SAFETY: There is no other reference to the allocation, and both parts are initialized.
        #[allow(unsafe_code)]
        let exclusive = unsafe {
            Exclusive::<UnsafeCell<u32>>::init(Arc::as_ptr(&slot).cast_mut().cast()).write(UnsafeCell::new(0_u32));
            slot.assume_init()
        };
        let access = |exclusive: Arc<Exclusive<UnsafeCell<u32>>>| {
            // In a call, `CallState` rules out that the value is locked.
            exclusive.try_lock().map(|value| {
                // SAFETY: The value is locked. Loom checks it.
                #[allow(unsafe_code)]
                value.with_mut(|accesses| unsafe { *accesses += 1 });
            })
        };
        assert!((0..2).all(|_| access(exclusive.clone()).is_some()), "access ends");
        let other = thread::spawn({
            let exclusive = exclusive.clone();
            move || access(exclusive).is_some()
        });
        let here = access(exclusive);
        assert!(other.join().unwrap() || here.is_some());
    });
}
