//! How many processes there are, and how many must be started.

use std::time::Duration;

use tokio::time::Instant;

use super::error::StartError;

/// Delay after the first start that failed. It doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// The processes of a pool that can run jobs, or will soon. A pure state machine over processes of
/// type `P`. Each process is in exactly one state: starting, idle or busy.
#[derive(Debug)]
pub(super) struct Roster<P> {
    /// Processes without a job. The last one is used first: its memory is warm.
    idle: Vec<P>,
    busy: usize,
    starting: usize,
    /// Number of processes that the pool keeps alive: those that may run a job at the same time,
    /// and the spares.
    target: usize,
    /// Starts that failed in a row.
    failures: u32,
    /// Starts that failed.
    failed: u64,
    last_error: Option<StartError>,
    /// No process is started before this time.
    retry_at: Option<Instant>,
    is_closed: bool,
}

impl<P> Roster<P> {
    pub(super) fn new(target: usize) -> Self {
        Self {
            idle: Vec::new(),
            busy: 0,
            starting: 0,
            target,
            failures: 0,
            failed: 0,
            last_error: None,
            retry_at: None,
            is_closed: false,
        }
    }

    /// Gives a job an idle process.
    pub(super) fn take(&mut self) -> Option<P> {
        let process = self.idle.pop()?;
        self.busy += 1;
        Some(process)
    }

    /// Returns a process to the idle ones after its job. A closed roster returns it to the caller,
    /// who must end it.
    #[must_use = "a process that is returned must be ended"]
    pub(super) fn put_back(&mut self, process: P) -> Option<P> {
        self.busy -= 1;
        if self.is_closed {
            return Some(process);
        }
        self.idle.push(process);
        None
    }

    /// Removes a busy process, which has ended or is about to.
    pub(super) fn remove_busy(&mut self) {
        self.busy -= 1;
    }

    /// Removes the idle processes that match.
    pub(super) fn remove_idle(&mut self, matches: impl FnMut(&P) -> bool) -> Vec<P> {
        let (removed, kept) = std::mem::take(&mut self.idle).into_iter().partition(matches);
        self.idle = kept;
        removed
    }

    /// Returns what a function returns for each idle process.
    pub(super) fn map_idle<T>(&self, map: impl FnMut(&P) -> T) -> Vec<T> {
        self.idle.iter().map(map).collect()
    }

    /// Returns the number of processes that the caller must start now.
    pub(super) fn start_missing(&mut self, now: Instant) -> usize {
        if self.is_closed || self.retry_at.is_some_and(|at| now < at) {
            return 0;
        }
        let missing = self.target.saturating_sub(self.len());
        // After a failure, one attempt at a time.
        let missing = if self.failures > 0 { missing.min(usize::from(self.starting == 0)) } else { missing };
        self.starting += missing;
        missing
    }

    /// Returns when [`start_missing`](Self::start_missing) must be called again.
    pub(super) fn next_start(&self) -> Option<Instant> {
        let is_missing = !self.is_closed && self.len() < self.target;
        self.retry_at.filter(|_| is_missing && self.starting == 0)
    }

    /// Adds a process that is ready. A closed roster returns it to the caller, who must end it.
    #[must_use = "a process that is returned must be ended"]
    pub(super) fn on_ready(&mut self, process: P) -> Option<P> {
        self.starting -= 1;
        (self.failures, self.retry_at, self.last_error) = (0, None, None);
        if self.is_closed {
            return Some(process);
        }
        // Below those that have run jobs, which are warm.
        self.idle.insert(0, process);
        None
    }

    /// Records that a start is given up, because the roster is closed.
    pub(super) fn on_start_cancelled(&mut self) {
        self.starting -= 1;
    }

    /// Records that a process could not be started.
    pub(super) fn on_start_failed(&mut self, now: Instant, error: StartError) {
        self.starting -= 1;
        self.failed += 1;
        let backoff = MIN_BACKOFF.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(MAX_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.checked_add(backoff);
        self.last_error = Some(error);
    }

    /// Delays the next start, because a process has ended before it was given a job. Otherwise one
    /// that always does would be started again without end.
    pub(super) fn delay_start(&mut self, now: Instant) {
        self.retry_at = self.retry_at.max(now.checked_add(MIN_BACKOFF));
    }

    /// Returns the error of the last start, if it failed after `seen` starts had failed and no
    /// process is about to be ready.
    pub(super) fn start_error(&self, seen: u64) -> Option<StartError> {
        let is_hopeless = self.failed > seen && self.starting == 0 && self.idle.is_empty();
        self.last_error.clone().filter(|_| is_hopeless)
    }

    /// Returns the error of the last start, if it failed.
    pub(super) fn last_error(&self) -> Option<StartError> {
        self.last_error.clone()
    }

    /// Returns `true` unless the last start has failed.
    pub(super) fn can_start(&self) -> bool {
        self.failures == 0
    }

    /// Number of starts that failed.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// Starts no more processes. Returns the idle ones, which the caller must end.
    #[must_use = "these processes must be ended"]
    pub(super) fn close(&mut self) -> Vec<P> {
        self.is_closed = true;
        std::mem::take(&mut self.idle)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Returns the number of idle, busy and starting processes.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.idle.len(), self.busy, self.starting)
    }

    fn len(&self) -> usize {
        self.idle.len() + self.busy + self.starting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::process::error::StartErrorKind;

    fn error() -> StartError {
        StartError::new(StartErrorKind::Silent)
    }

    #[test]
    fn spare_takes_over_while_another_one_starts() {
        let (mut roster, now) = (Roster::new(2), Instant::now());
        assert_eq!(roster.start_missing(now), 2);
        assert!(roster.on_ready('a').is_none() && roster.on_ready('b').is_none());
        assert_eq!((roster.take(), roster.start_missing(now)), (Some('a'), 0));
        roster.remove_busy(); // killed
        assert_eq!((roster.start_missing(now), roster.take()), (1, Some('b')));
    }

    #[test]
    fn process_that_ends_before_its_first_job_delays_the_next_start() {
        let (mut roster, now) = (Roster::new(1), Instant::now());
        assert_eq!(roster.start_missing(now), 1);
        assert!(roster.on_ready('a').is_none());
        assert_eq!(roster.remove_idle(|_| true), ['a']);
        roster.delay_start(now);
        assert_eq!((roster.start_missing(now), roster.next_start()), (0, now.checked_add(MIN_BACKOFF)));
        assert_eq!(roster.start_missing(now + MIN_BACKOFF), 1);
    }

    #[test]
    fn process_that_was_used_last_is_used_first() {
        let (mut roster, now) = (Roster::new(2), Instant::now());
        assert_eq!(roster.start_missing(now), 2);
        assert!(roster.on_ready('a').is_none());
        let used = roster.take().unwrap();
        assert!(roster.put_back(used).is_none() && roster.on_ready('b').is_none());
        assert_eq!(roster.take(), Some('a'));
    }

    #[test]
    fn failed_starts_back_off_and_fail_only_jobs_that_wait() {
        let (mut roster, mut now) = (Roster::<char>::new(3), Instant::now());
        assert_eq!(roster.start_missing(now), 3);
        let seen = roster.failed();
        for _ in 0..2 {
            roster.on_start_failed(now, error());
            assert_eq!((roster.start_error(seen), roster.start_missing(now)), (None, 0));
        }
        roster.on_start_failed(now, error());
        assert!(roster.start_error(seen).is_some() && !roster.can_start());
        assert_eq!(roster.start_error(roster.failed()), None, "a job that came later");
        now = roster.next_start().unwrap();
        assert_eq!((roster.start_missing(now), roster.start_missing(now)), (1, 0), "one attempt at a time");
        assert!(roster.on_ready('a').is_none());
        assert_eq!((roster.can_start(), roster.start_error(seen), roster.start_missing(now)), (true, None, 2));
    }

    #[test]
    fn closed_roster_keeps_nothing() {
        let (mut roster, now) = (Roster::new(3), Instant::now());
        assert_eq!(roster.start_missing(now), 3);
        assert!(roster.on_ready('a').is_none() && roster.on_ready('b').is_none());
        let busy = roster.take().unwrap();
        assert_eq!(roster.close(), ['b']);
        assert_eq!((roster.put_back(busy), roster.on_ready('c')), (Some('a'), Some('c')));
        assert_eq!((roster.counts(), roster.start_missing(now)), ((0, 0, 0), 0));
    }

    proptest! {
        #[test]
        fn pool_never_has_more_processes_than_its_target(steps in prop::collection::vec(0_u8..5, 0..200)) {
            let (mut roster, mut now) = (Roster::new(4), Instant::now());
            let mut busy = Vec::new();
            for (id, step) in steps.into_iter().enumerate() {
                let (idle, _, starting) = roster.counts();
                match step {
                    0 => {
                        roster.start_missing(now);
                    }
                    1 if starting > 0 => _ = roster.on_ready(id),
                    2 if starting > 0 => roster.on_start_failed(now, error()),
                    3 if idle > 0 => busy.extend(roster.take()),
                    4 if !busy.is_empty() => {
                        let process = busy.remove(0);
                        if id % 2 == 0 { _ = roster.put_back(process) } else { roster.remove_busy() }
                    }
                    _ => now += Duration::from_secs(1),
                }
                let (idle, counted, starting) = roster.counts();
                prop_assert_eq!(counted, busy.len());
                prop_assert!(idle + counted + starting <= 4);
            }
            // Whatever has happened, the pool can become complete again.
            for _ in 0..4 {
                now += MAX_BACKOFF;
                roster.start_missing(now);
                while roster.counts().2 > 0 {
                    let _ = roster.on_ready(0);
                }
            }
            prop_assert_eq!(roster.counts().0 + busy.len(), 4);
        }
    }
}
