use std::{
    mem, ptr,
    task::{Context, Poll, Waker},
};

use crate::{
    pool::call::Reply,
    sync::{Mutex, lock},
};

/// The list of one runtime.
///
/// Invariant: a waker in the list is carried, for who puts the first one in wakes the carrier, and the carrier sleeps only
/// after it has seen the list empty; both under the lock. A carrier that goes takes all of them along.
#[derive(Debug, Default)]
pub(in crate::pool) struct Post {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    wakers: Vec<Waker>,
    /// How often the list was emptied.
    emptied: u64,
    /// `emptied` when the watch last looked, if the list was not empty then.
    seen: Option<u64>,
    /// `None` until the carrier was polled, and after it is gone.
    carrier: Option<Waker>,
    closed: bool,
    gone: bool,
}

impl List {
    fn take(&mut self) -> Vec<Waker> {
        self.emptied += 1;
        mem::take(&mut self.wakers)
    }
}

/// Who is to be woken now.
#[derive(Debug)]
#[must_use = "they are to be woken"]
pub(in crate::pool) enum Sent {
    /// Everybody in the list.
    All(Vec<Waker>),
    /// A caller that is not carried.
    Caller(Waker),
    /// The carrier: the list is not empty any more.
    Carrier(Waker),
    /// Nobody: the carrier comes.
    Nobody,
}

impl Sent {
    pub(in crate::pool) fn wake(self) {
        match self {
            Self::All(wakers) => wakers.into_iter().for_each(Waker::wake),
            Self::Caller(waker) | Self::Carrier(waker) => waker.wake(),
            Self::Nobody => {}
        }
    }
}

impl Post {
    /// Puts the caller into the list, if it may be carried. `alone` says that others are not to be expected soon: then one
    /// that finds the list empty is better off with a wake of its own.
    pub(in crate::pool) fn send(&self, reply: Reply, alone: bool) -> Sent {
        let Reply { waker, is_task } = reply;
        let mut list = lock(&self.list);
        let List { wakers, carrier, .. } = &mut *list;
        let carrier = match carrier {
            Some(carrier) if is_task && ptr::eq(carrier.vtable(), waker.vtable()) => carrier,
            _ => return Sent::Caller(waker),
        };
        if wakers.is_empty() && alone {
            return Sent::Caller(waker);
        }
        wakers.push(waker);
        if wakers.len() == 1 { Sent::Carrier(carrier.clone()) } else { Sent::Nobody }
    }

    /// Empties the list past the carrier.
    pub(in crate::pool) fn recall(&self) -> Sent {
        let mut list = lock(&self.list);
        if list.wakers.is_empty() { Sent::Nobody } else { Sent::All(list.take()) }
    }

    /// Empties the list past the carrier if it was not empty the last time, either, and nobody came since. Also returns how
    /// often it was emptied so far.
    pub(super) fn look(&self) -> (Sent, u64) {
        let mut list = lock(&self.list);
        if list.wakers.is_empty() {
            list.seen = None;
        } else if list.seen == Some(list.emptied) {
            return (Sent::All(list.take()), list.emptied);
        } else {
            list.seen = Some(list.emptied);
        }
        (Sent::Nobody, list.emptied)
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.list).wakers.is_empty()
    }

    pub(super) fn is_gone(&self) -> bool {
        lock(&self.list).gone
    }

    /// Nobody will send any more. Returns the carrier, who is to be woken for the last time.
    pub(super) fn close(&self) -> Option<Waker> {
        let mut list = lock(&self.list);
        list.closed = true;
        list.carrier.clone()
    }

    /// Fills `wakers`, which is empty. If there are none, the carrier is woken for the next; `Ready` if there will be none.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, wakers: &mut Vec<Waker>) -> Poll<()> {
        let mut list = lock(&self.list);
        mem::swap(&mut list.wakers, wakers);
        if !wakers.is_empty() {
            list.emptied += 1;
            return Poll::Pending;
        }
        if list.closed {
            return Poll::Ready(());
        }
        if !list.carrier.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            list.carrier = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The carrier goes: nobody will empty the list any more. Returns whom it takes along.
    pub(super) fn leave(&self) -> Vec<Waker> {
        let mut list = lock(&self.list);
        list.gone = true;
        list.carrier = None;
        list.take()
    }
}
