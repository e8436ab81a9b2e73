//! One call, one thread that runs it, a waker and a caller that may leave: in every order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use loom::{cell::UnsafeCell, future::block_on, thread};

use super::state::{Begin, CallState, DropAction, OnCallerDrop, Park};

/// A call around a state, with loom's cell in place of the stage: a second thread in it is an error of the model.
struct Model {
    state: CallState,
    future: UnsafeCell<u32>,
    /// Polls until the future is ready.
    polls: u32,
    /// Queue entries that were made, and not yet run.
    entries: AtomicUsize,
    outputs: AtomicUsize,
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// The thread has to run the call again: its entry was put back.
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
        })
    }

    /// What `Call::run` does.
    fn run(&self) -> Turn {
        assert_eq!(self.entries.fetch_sub(1, SeqCst), 1, "two entries for one call");
        let begin = self.state.begin();
        if begin == Begin::Nothing {
            return Turn::Ended;
        }
        let ready = self.future.with_mut(|polled| {
            // SAFETY: loom checks that nobody else is in the cell; that nobody is, is what this model shows.
            #[allow(unsafe_code)]
            let polled = unsafe { &mut *polled };
            *polled += 1;
            *polled >= self.polls
        });
        if begin == Begin::Poll && !ready {
            match self.state.park() {
                Park::Parked => return Turn::Parked,
                Park::Schedule => {
                    self.entries.fetch_add(1, SeqCst);
                    return Turn::Again;
                }
                Park::Cancelled => {}
            }
        }
        self.outputs.fetch_add(1, SeqCst);
        let (gone, caller) = self.state.complete();
        if gone {
            assert_eq!(self.outputs.fetch_sub(1, SeqCst), 1, "the output was disposed of twice");
        }
        if let Some(caller) = caller {
            caller.waker.wake();
        }
        Turn::Ended
    }

    /// What a worker does with an entry: runs it, and again while it comes back.
    fn work(&self) {
        while self.run() == Turn::Again {}
    }

    fn wake(&self) {
        if self.state.wake() {
            self.entries.fetch_add(1, SeqCst);
            self.work();
        }
    }

    fn leave(&self, departure: OnCallerDrop) {
        match self.state.drop_caller(on_drop) {
            DropAction::DropOutput => {
                assert_eq!(self.outputs.fetch_sub(1, SeqCst), 1, "the output was disposed of twice")
            }
            DropAction::None => {}
            DropAction::DropFuture => self.future.with_mut(|polled| {
                // SAFETY: as in `run`.
                #[allow(unsafe_code)]
                let polled = unsafe { &mut *polled };
                assert_eq!(*polled, 0, "it had started");
            }),
            DropAction::Schedule => {
                self.entries.fetch_add(1, SeqCst);
                self.work();
            }
        }
    }
}

#[test]
fn a_wake_at_any_moment_leads_to_the_second_poll() {
    loom::model(|| {
        let call = Model::new(2);
        let waker = thread::spawn({
            let call = call.clone();
            move || call.wake()
        });
        // A wake of a call that is queued anyway changes nothing; so only one that comes after the entry was taken
        // counts, and this thread gives the other wake itself.
        call.work();
        waker.join().unwrap();
        call.wake();
        assert!(call.state.is_complete());
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (1, 0));
    });
}

#[test]
fn two_wakers_and_a_runner_never_poll_at_once() {
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
fn the_caller_is_woken_however_it_meets_the_end() {
    loom::model(|| {
        let call = Model::new(1);
        let runner = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        // loom reports a `block_on` that is never woken as a deadlock.
        block_on(std::future::poll_fn(|cx: &mut Context<'_>| {
            if call.state.poll_complete(cx, true) { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_eq!(call.outputs.load(SeqCst), 1);
        runner.join().unwrap();
    });
}

fn leave_at_any_moment(departure: OnCallerDrop) {
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
        call.leave(departure);
        runner.join().unwrap();
        waker.join().unwrap();
        assert!(call.state.is_complete(), "the future is still there");
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (0, 0));
    });
}

#[test]
fn a_caller_that_leaves_at_any_moment_leaves_nothing_behind() {
    leave_at_any_moment(OnCallerDrop::Cancel);
}

#[test]
fn nor_does_one_that_has_everything_dropped_on_the_pool() {
    leave_at_any_moment(OnCallerDrop::CancelOnPool);
}

#[test]
fn a_detached_call_goes_on_and_its_output_is_disposed_of_once() {
    loom::model(|| {
        let call = Model::new(1);
        let runner = thread::spawn({
            let call = call.clone();
            move || call.work()
        });
        call.leave(OnCallerDrop::Detach);
        runner.join().unwrap();
        assert!(call.state.is_complete());
        assert_eq!((call.outputs.load(SeqCst), call.entries.load(SeqCst)), (0, 0));
    });
}
