use std::collections::VecDeque;

use tokio::time::Instant;

use super::{
    Priority, QueuePolicy,
    lane::Waits,
    lanes::{Lanes, Which},
    shrink::shrink,
};

/// New calls get every eighth pick even if woken calls keep coming: a future that wakes itself for ever starves nobody,
/// and woken calls, which hold memory and a caller's patience already, still go first.
const FRESH_EVERY: u8 = 8;
/// And in the middle between these, woken calls go before woken release calls, for the same reason.
const RESUMED_EVERY: u8 = 4;

/// All jobs that wait in a pool: which goes next.
///
/// New release calls go before everything: each is picked once, and their number is bounded. Woken release calls go
/// before everything but for two picks of eight.
#[derive(Debug)]
pub(in crate::pool) struct Jobs<T> {
    fresh: Lanes<T>,
    resumed: VecDeque<T>,
    /// In a box, for the same reason as some of the lanes.
    release: Box<Release<T>>,
    /// Jobs in there.
    releases: usize,
    picks: u8,
}

#[derive(Debug)]
struct Release<T> {
    fresh: VecDeque<T>,
    resumed: VecDeque<T>,
}

impl<T: Waits> Jobs<T> {
    pub(in crate::pool) fn new(policy: QueuePolicy) -> Self {
        let release = Box::new(Release { fresh: VecDeque::new(), resumed: VecDeque::new() });
        Self { fresh: Lanes::new(policy), resumed: VecDeque::new(), release, releases: 0, picks: 0 }
    }

    #[inline]
    pub(in crate::pool) fn push(&mut self, job: T, priority: Priority, resumed: bool) {
        match (priority, resumed) {
            (Priority::Release, _) => {
                let Release { fresh, resumed: woken } = &mut *self.release;
                if resumed { woken } else { fresh }.push_back(job);
                self.releases += 1;
            }
            (_, true) => self.resumed.push_back(job),
            (Priority::High, false) => self.fresh.push(job, Which::High),
            (Priority::Low, false) => self.fresh.push(job, Which::Low),
            (Priority::Normal, false) => self.fresh.push(job, Which::Normal),
        }
    }

    /// The job that goes next. New calls that are to be shed instead go into `shed`. `None` only if nothing is left.
    #[inline]
    pub(in crate::pool) fn pop(&mut self, now: Option<Instant>, shed: &mut Vec<T>) -> Option<T> {
        if self.releases > 0 && self.release_is_next() {
            return self.pop_release();
        }
        self.picks = (self.picks + 1) % FRESH_EVERY;
        let Self { fresh, resumed, .. } = self;
        let job = match self.picks {
            0 => fresh.pop(now, shed).or_else(|| resumed.pop_front()),
            _ => resumed.pop_front().or_else(|| fresh.pop(now, shed)),
        };
        job.or_else(|| self.pop_release())
    }

    /// Woken release calls leave one pick of eight to new calls, and one to woken ones, if there are any.
    fn release_is_next(&mut self) -> bool {
        if !self.release.fresh.is_empty() {
            return true;
        }
        let next = (self.picks + 1) % FRESH_EVERY;
        let first = match next {
            0 => !self.fresh.is_empty(),
            RESUMED_EVERY => !self.resumed.is_empty(),
            _ => false,
        };
        if !first {
            self.picks = next;
        }
        !first
    }

    /// The release call that goes next.
    pub(in crate::pool) fn pop_release(&mut self) -> Option<T> {
        if self.releases == 0 {
            return None;
        }
        self.releases -= 1;
        self.release.fresh.pop_front().or_else(|| self.release.resumed.pop_front())
    }

    pub(in crate::pool) fn has_release(&self) -> bool {
        self.releases > 0
    }

    pub(in crate::pool) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// New calls of normal priority, first in, first out.
    pub(in crate::pool) fn normal(&mut self) -> &mut VecDeque<T> {
        self.fresh.normal().calls()
    }

    /// Nothing is left: frees what a burst took. Release calls are few.
    pub(in crate::pool) fn shrink(&mut self) {
        self.fresh.shrink();
        shrink(&mut self.resumed);
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.resumed.len() + self.releases
    }

    /// Since when the oldest new call waits.
    pub(in crate::pool) fn oldest(&self) -> Option<Instant> {
        self.fresh.oldest()
    }

    pub(in crate::pool) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.resumed.drain(..).chain(self.fresh.drain())
    }

    pub(in crate::pool) fn drain_release(&mut self) -> impl Iterator<Item = T> {
        self.releases = 0;
        self.release.resumed.drain(..).chain(self.release.fresh.drain(..))
    }
}
