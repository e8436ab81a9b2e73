use std::{
    mem, ptr,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    pool::call::Reply,
    sync::{Mutex, lock},
};

/// A waker that stands in a list for longer than this will not be fetched soon: something keeps the runtime. Some ten times
/// what it takes to wake one that sleeps.
const STALE: Duration = Duration::from_millis(1);

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
    /// When the first of them was put in.
    since: Option<Instant>,
    /// `None` until the carrier was polled, and after it is gone.
    carrier: Option<Waker>,
    closed: bool,
    gone: bool,
}

/// Who is to be woken now.
#[derive(Debug)]
#[must_use = "they are to be woken"]
pub(in crate::pool) enum Sent {
    /// Everybody in the list, which went stale.
    All(Vec<Waker>),
    /// Nobody: the carrier comes.
    Nobody,
    /// The carrier, or a caller that is not carried.
    One(Waker),
}

impl Sent {
    pub(in crate::pool) fn wake(self) {
        match self {
            Self::All(wakers) => wakers.into_iter().for_each(Waker::wake),
            Self::Nobody => {}
            Self::One(waker) => waker.wake(),
        }
    }
}

impl Post {
    /// Puts the caller into the list, if it may be carried. `alone` says that others are not to be expected soon: then one
    /// that finds the list empty is better off with a wake of its own.
    pub(in crate::pool) fn send(&self, reply: Reply, alone: bool) -> Sent {
        let Reply { waker, is_task, ended } = reply;
        let mut list = lock(&self.list);
        let List { wakers, since, carrier, .. } = &mut *list;
        let carrier = match carrier {
            Some(carrier) if is_task && ptr::eq(carrier.vtable(), waker.vtable()) => carrier,
            _ => return Sent::One(waker),
        };
        if wakers.is_empty() {
            if alone {
                return Sent::One(waker);
            }
            wakers.push(waker);
            *since = Some(ended);
            return Sent::One(carrier.clone());
        }
        wakers.push(waker);
        if since.is_some_and(|since| ended.saturating_duration_since(since) > STALE) {
            return Sent::All(mem::take(wakers));
        }
        Sent::Nobody
    }

    /// Empties the list past the carrier.
    pub(in crate::pool) fn recall(&self) -> Sent {
        let mut list = lock(&self.list);
        if list.wakers.is_empty() { Sent::Nobody } else { Sent::All(mem::take(&mut list.wakers)) }
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
        mem::take(&mut list.wakers)
    }
}
