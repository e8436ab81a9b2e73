use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    Priority, QueuePolicy,
    lane::Waits,
    lanes::{Lanes, Which},
};

/// New calls get every eighth pick even if woken calls keep coming: a future that wakes itself for ever starves nobody,
/// and woken calls, which hold memory and a caller's patience already, still go first.
const FRESH_EVERY: u8 = 8;
/// And in the middle between these, woken calls go before woken release calls, for the same reason.
const RESUMED_EVERY: u8 = 4;

/// All jobs that wait in a pool: which goes next.
///
/// New release calls go before everything: each is picked once, and their number is bounded. Woken release calls go before
/// everything but for two picks of eight.
#[derive(Debug)]
pub(in crate::pool) struct Jobs<T> {
    fresh: Lanes<T>,
    resumed: VecDeque<T>,
    release: VecDeque<T>,
    /// Release calls that were woken.
    release_resumed: VecDeque<T>,
    picks: u8,
}

impl<T: Waits> Jobs<T> {
    pub(in crate::pool) fn new(policy: QueuePolicy) -> Self {
        Self {
            fresh: Lanes::new(policy),
            resumed: VecDeque::new(),
            release: VecDeque::new(),
            release_resumed: VecDeque::new(),
            picks: 0,
        }
    }

    pub(in crate::pool) fn push(&mut self, job: T, priority: Priority, resumed: bool) {
        let which = match (priority, resumed) {
            (Priority::Release, false) => return self.release.push_back(job),
            (Priority::Release, true) => return self.release_resumed.push_back(job),
            (_, true) => return self.resumed.push_back(job),
            (Priority::High, false) => Which::High,
            (Priority::Low, false) => Which::Low,
            (Priority::Normal, false) => Which::Normal,
        };
        self.fresh.push(job, which);
    }

    /// The job that goes next. New calls that are to be shed instead go into `shed`. `None` only if nothing is left.
    pub(in crate::pool) fn pop(&mut self, now: Option<Instant>, shed: &mut Vec<T>) -> Option<T> {
        let Self { fresh, resumed, release, release_resumed, picks } = self;
        if let Some(job) = release.pop_front() {
            return Some(job);
        }
        *picks = (*picks + 1) % FRESH_EVERY;
        let mut fresh = || fresh.pop(now, shed);
        match *picks {
            0 => fresh().or_else(|| release_resumed.pop_front()).or_else(|| resumed.pop_front()),
            RESUMED_EVERY => resumed.pop_front().or_else(|| release_resumed.pop_front()).or_else(fresh),
            _ => release_resumed.pop_front().or_else(|| resumed.pop_front()).or_else(fresh),
        }
    }

    /// The release call that goes next.
    pub(in crate::pool) fn pop_release(&mut self) -> Option<T> {
        self.release.pop_front().or_else(|| self.release_resumed.pop_front())
    }

    pub(in crate::pool) fn has_release(&self) -> bool {
        !(self.release.is_empty() && self.release_resumed.is_empty())
    }

    pub(in crate::pool) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.resumed.is_empty() && !self.has_release()
    }

    pub(in crate::pool) fn len(&self) -> usize {
        self.fresh.len() + self.resumed.len() + self.release.len() + self.release_resumed.len()
    }

    /// Since when the oldest new call waits.
    pub(in crate::pool) fn oldest(&self) -> Option<Instant> {
        self.fresh.oldest()
    }

    pub(in crate::pool) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.resumed.drain(..).chain(self.fresh.drain())
    }

    pub(in crate::pool) fn drain_release(&mut self) -> impl Iterator<Item = T> {
        self.release_resumed.drain(..).chain(self.release.drain(..))
    }
}
