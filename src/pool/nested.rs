//! Calls that block a thread of a pool until another call of the same pool is done.
//!
//! A call that awaits another call of its pool returns `Pending`, and its thread runs the other
//! call. A call that blocks on it, with `Handle::block_on`, keeps its thread. If all threads of the
//! pool do so, none is left to run the calls that they wait for.
//!
//! Whether a poll blocks or is about to return cannot be known when it starts to wait. Each poll
//! that waits for calls of its own pool is therefore recorded until it ends, or until it has the
//! result of each of these calls or has dropped it. If the pool is stalled and every thread is in
//! such a poll, the monitor fails the waits.

use std::{collections::HashSet, task::Waker};

use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// The recorded polls of one pool.
#[derive(Debug, Default)]
pub(crate) struct NestedWaits(Mutex<Vec<NestedWait>>);

/// A poll of a call that waits for other calls of the same pool.
#[derive(Debug)]
struct NestedWait {
    /// Address of the call that is polled.
    call: usize,
    /// Addresses of the calls that it waits for. Not empty.
    inner: HashSet<usize>,
    /// Waker with which one of them was polled last.
    waker: Waker,
    /// `true` if the poll must stop waiting.
    is_deadlocked: bool,
}

impl NestedWaits {
    /// Returns the number of polls that wait for a call of the same pool.
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Records that the poll of `call` waits for `inner`, or stores the waker of its current wait.
    /// Returns `true` if the wait must fail.
    pub(super) fn wait(&self, call: usize, inner: usize, waker: Waker) -> bool {
        let mut waits = lock(&self.0);
        let (is_deadlocked, replaced) = match waits.iter_mut().find(|wait| wait.call == call) {
            Some(wait) => {
                wait.inner.insert(inner);
                (wait.is_deadlocked, Some(std::mem::replace(&mut wait.waker, waker)))
            }
            None => {
                waits.push(NestedWait { call, inner: HashSet::from([inner]), waker, is_deadlocked: false });
                (false, None)
            }
        };
        drop(waits);
        drop(replaced); // User code, so after the lock.
        is_deadlocked
    }

    /// Records that the poll of `call` no longer waits for `inner`.
    pub(super) fn end_wait(&self, call: usize, inner: usize) {
        self.remove_if(call, |wait| {
            wait.inner.remove(&inner);
            wait.inner.is_empty()
        });
    }

    /// Forgets a poll, because it has ended.
    pub(super) fn remove(&self, call: usize) {
        self.remove_if(call, |_| true);
    }

    fn remove_if(&self, call: usize, condition: impl FnOnce(&mut NestedWait) -> bool) {
        let mut waits = lock(&self.0);
        let position = waits.iter().position(|wait| wait.call == call);
        let position = position.filter(|position| condition(&mut waits[*position]));
        let removed = position.map(|position| waits.swap_remove(position));
        drop(waits);
        ignore_panic(|| drop(removed)); // User code, so after the lock.
    }

    /// Makes every wait fail, and wakes the threads that wait. Returns the number of waits that are
    /// notified for the first time. A wait does not fail if the call that it waits for ends first,
    /// on the thread of a wait that has failed.
    pub(super) fn fail_all(&self) -> usize {
        let mut wakers = Vec::new();
        let mut notified = 0;
        for wait in lock(&self.0).iter_mut() {
            notified += usize::from(!std::mem::replace(&mut wait.is_deadlocked, true));
            wakers.push(std::mem::replace(&mut wait.waker, Waker::noop().clone()));
        }
        wakers.into_iter().for_each(|waker| ignore_panic(|| waker.wake()));
        notified
    }
}
