use std::collections::VecDeque;

use tokio::time::Instant;

use super::{QueuePolicy, codel::Overload, shrink::shrink};

/// How many calls are shed at once, so that the one that is taken starts promptly.
pub(super) const SHED_AT_MOST: usize = 64;

/// What a queue asks of what waits in it.
pub(in crate::pool) trait Waits {
    /// Since when. Not read unless a policy wants to know.
    fn since(&self) -> Instant;
}

/// New calls of one priority, in the order in which they came.
#[derive(Debug)]
pub(super) struct Lane<T> {
    calls: VecDeque<T>,
    /// `None`: first in, first out. In a box, since the lanes are looked at under the pool's lock, a million times a
    /// second, and should share few cache lines.
    overload: Option<Box<Overload>>,
}

impl<T: Waits> Lane<T> {
    pub(super) fn new(policy: QueuePolicy) -> Self {
        let overload = match policy {
            QueuePolicy::Codel(codel) => Some(Box::new(Overload::new(codel))),
            QueuePolicy::Fifo => None,
        };
        Self { calls: VecDeque::new(), overload }
    }

    #[inline]
    pub(super) fn push(&mut self, call: T) {
        if let (Some(overload), true) = (&mut self.overload, self.calls.is_empty()) {
            overload.was_empty(call.since());
        }
        self.calls.push_back(call);
    }

    /// The call that goes next, if there is any. What is to be shed goes into `shed`.
    ///
    /// `now` is not needed for first in, first out.
    pub(super) fn pop(&mut self, now: Option<Instant>, shed: &mut Vec<T>) -> Option<T> {
        let (Some(overload), Some(now)) = (&mut self.overload, now) else { return self.calls.pop_front() };
        if !overload.look(self.calls.front()?.since(), now) {
            return self.calls.pop_front();
        }
        let newest = self.calls.pop_back(); // first: a thread that is free does not shed the only call
        while shed.len() < SHED_AT_MOST && self.calls.front().is_some_and(|call| overload.is_expired(call.since(), now))
        {
            shed.extend(self.calls.pop_front());
        }
        newest
    }

    pub(super) fn shrink(&mut self) {
        shrink(&mut self.calls);
    }

    /// The queue itself, for calls that come all at once. Only if it is first in, first out: a policy looks at each.
    pub(super) fn calls(&mut self) -> &mut VecDeque<T> {
        debug_assert!(self.overload.is_none());
        &mut self.calls
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Since when the oldest one waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.calls.front().map(Waits::since)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.calls.drain(..)
    }
}
