//! Detection of a queue that does not drain, for [`QueuePolicy::AcceptBursts`].
//!
//! [`QueuePolicy::AcceptBursts`]: super::QueuePolicy::AcceptBursts

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

/// Minimum length of a window. A shorter one would take the arrivals of one burst for a trend.
const MIN_WINDOW: Duration = Duration::from_millis(20);

/// Number of calls per thread that must start within a window, so that windows are long enough
/// compared with the calls, however long these are.
const STARTS_PER_THREAD: u64 = 4;

/// Minimum number of calls that must start within a window. With fewer, random arrivals of a single
/// thread look like a trend.
const MIN_STARTS: u64 = 8;

/// Number of calls per thread that may wait while the pool is overloaded. With two, a thread that
/// becomes idle nearly always finds a call, and a call waits for about two others.
const WAITING_PER_THREAD: usize = 2;

/// Minimum number of calls that may wait. With two, a single thread would be idle for 7 % of the
/// time at twice its capacity.
const MIN_WAITING: usize = 4;

/// Reciprocal of the share of calls that decides whether a queue grows and whether an overload has
/// ended. A smaller share would be within the noise of random arrivals.
const SHARE: u64 = 8;

/// A queue grows only if the square of its growth is more than this multiple of the calls that have
/// started. With random arrivals and durations, the variance of the growth is twice their number:
/// two standard deviations are more than chance.
const VARIANCE: u64 = 8;

/// Number of times that more calls must start in the window that ends an overload. Windows of the
/// minimum length would end an overload of twice the capacity every second, by chance.
const LONG_WINDOW: u64 = 4;

/// Reciprocal of the growth, per started call, with which a probe fails at once.
const STEEP_SHARE: u64 = 2;

/// Number of times longer than the detection that the first probe is put off: one second if calls
/// are short.
const FIRST_PAUSE: u32 = 25;

/// Number of times longer than a failed probe that the next one is put off. The waits of less than
/// 1 % of the calls are then those of a probe.
const PAUSE: u32 = 128;

/// Factor by which probes become longer if the queue grows slowly, up to `MAX_PATIENCE`.
const PATIENCE_FACTOR: u32 = 8;

/// Maximum time for which a probe tolerates that the queue grows slowly. Longer than the
/// `Retry-After` of one second after which rejected callers return.
const MAX_PATIENCE: Duration = Duration::from_millis(1500);

/// Time after the next probe was due for which its length is remembered, if the pool was not
/// overloaded when it was due.
const MEMORY: Duration = Duration::from_secs(10);

/// What an arriving call finds, and its fate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// Number of calls that wait in the queue.
    pub(super) waiting: usize,
    /// Number of calls that have left the queue so far: they have started, or were dropped. It
    /// wraps around.
    pub(super) started: u32,
    pub(super) fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Admitted,
    Rejected,
    /// The call was rejected because of its priority or its key, while others would have been
    /// admitted. That says nothing about the load, but an overload lasts while such calls arrive.
    RejectedEarly,
}

/// Change that an arrival reveals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The pool is overloaded: at most [`OverloadDetector::limit`] calls should wait. Others should
    /// be shed.
    Overloaded,
    /// The limit should be raised for a moment, to find out whether the queue would still grow.
    ProbeStarted,
    /// The queue still grows: the limit applies again, as for `Overloaded`.
    ProbeFailed,
    /// The overload is over.
    Recovered,
}

/// Decides whether a pool is overloaded, from what arriving calls find. Pure: time is an argument.
///
/// A queue is *standing* while every arriving call finds at least `limit` calls in it. Time is
/// divided into windows while it stands.
///
/// * The pool becomes overloaded if the queue stands for two windows and grows in the second: by
///   over an eighth of the calls that start, or because calls are rejected. The queue of a burst
///   stands, but does not grow after its first window. Nor does that of a fixed number of callers
///   who wait for their answers.
/// * The overload ends after a window in which fewer than an eighth of the calls were rejected, and
///   with the first arrival after a pause, if the queue was empty in between. A pause is longer
///   than a minimum window.
/// * Rejections may be the effect of the limit alone: of short bursts, or of callers who return
///   because they were rejected. From time to time, the limit is therefore raised: a *probe*. It
///   ends the overload if the queue does not stand or grow after its first window. While the queue
///   grows by less than half of the calls that start, a probe may take longer, because rejected
///   callers return over a second.
#[derive(Debug)]
pub(super) struct OverloadDetector {
    limit: usize,
    min_starts: u64,
    state: State,
    /// Value of `started` at which the queue has been empty since the last arrival.
    empty_at: u32,
    /// Time of the next probe. If the pool is overloaded again before that, it stays the same.
    probe_at: Option<Instant>,
    /// Time for which the next probe tolerates that the queue grows slowly.
    patience: Duration,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The queue does not stand.
    Idle,
    Standing {
        since: Instant,
        window: Window,
        is_first: bool,
    },
    Overloaded {
        window: Window,
        /// Time of the last arrival.
        last: Instant,
    },
    Probing(Probe),
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    since: Instant,
    /// Time of the last arrival.
    last: Instant,
    window: Window,
    /// All that follows the first window. `None` during the first.
    total: Option<Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    /// Values at the start of the window. `started` includes the calls that are shed then.
    started: u32,
    waiting: usize,
    /// Arrivals since the start of the window.
    arrived: u64,
    rejected: u64,
    /// Number of starts with which the clock is read next.
    due: u64,
}

impl OverloadDetector {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            limit: threads.saturating_mul(WAITING_PER_THREAD).max(MIN_WAITING),
            min_starts: u64::try_from(threads).unwrap_or(u64::MAX).saturating_mul(STARTS_PER_THREAD).max(MIN_STARTS),
            state: State::Idle,
            empty_at: 0,
            probe_at: None,
            patience: Duration::ZERO,
        }
    }

    /// Returns the number of calls that may wait while the pool is overloaded.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns `true` if an arrival that finds fewer calls than `limit` changes nothing.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Returns `true` from `Overloaded` until `Recovered`.
    pub(super) fn is_overloaded(&self) -> bool {
        matches!(self.state, State::Overloaded { .. } | State::Probing(_))
    }

    /// Records an arrival. `now` is called only during an overload, and if a window may start or
    /// end.
    pub(super) fn observe(&mut self, arrival: Arrival, now: impl Fn() -> Instant) -> Change {
        // Calls that arrive at the same time find each other in the queue, so `waiting` may never
        // be 0. This is the number of those that were there before.
        let was_empty = passed(arrival.started, self.empty_at).is_some();
        let itself = usize::from(arrival.fate == Fate::Admitted);
        self.empty_at = arrival.started.wrapping_add((arrival.waiting + itself) as u32);
        let is_ignored = arrival.fate == Fate::RejectedEarly && !matches!(self.state, State::Overloaded { .. });
        if is_ignored {
            return Change::None;
        }
        let is_standing = arrival.waiting >= self.limit;
        let (state, change) = match self.state {
            State::Standing { .. } | State::Idle if is_standing && (was_empty || self.is_idle()) => {
                let now = now();
                (State::Standing { since: now, window: Window::new(now, arrival), is_first: true }, Change::None)
            }
            State::Standing { .. } if !is_standing => (State::Idle, Change::None),
            State::Idle => return Change::None,
            State::Standing { since, window, is_first } => {
                self.standing(since, window.and(arrival), is_first, arrival, now)
            }
            State::Overloaded { last, .. } | State::Probing(Probe { last, .. }) => {
                let now = now();
                if was_empty && now.saturating_duration_since(last) >= MIN_WINDOW {
                    (State::Idle, Change::Recovered)
                } else {
                    self.overloaded_or_probing(arrival, now)
                }
            }
        };
        self.state = state;
        change
    }

    fn overloaded_or_probing(&mut self, arrival: Arrival, now: Instant) -> (State, Change) {
        match self.state {
            State::Overloaded { window, .. } => self.overloaded(window.and(arrival), arrival, now),
            State::Probing(Probe { total: Some(total), .. })
                if arrival.waiting < self.limit && total.length(now) >= self.patience =>
            {
                (State::Idle, Change::Recovered)
            }
            State::Probing(probe) => {
                self.probing(Probe { last: now, window: probe.window.and(arrival), ..probe }, arrival, now)
            }
            state => (state, Change::None),
        }
    }

    fn standing(
        &mut self,
        since: Instant,
        mut window: Window,
        is_first: bool,
        arrival: Arrival,
        now: impl Fn() -> Instant,
    ) -> (State, Change) {
        let Some(now) = window.end(arrival, self.min_starts, now) else {
            return (State::Standing { since, window, is_first }, Change::None);
        };
        let next = Window::new(now, arrival);
        match window.growth(arrival, SHARE) {
            Growth::Unclear if !is_first => return (State::Standing { since, window, is_first }, Change::None),
            Growth::Grows if !is_first => {}
            _ => return (State::Standing { since, window: next, is_first: false }, Change::None),
        }
        let length = now.saturating_duration_since(since);
        match self.probe_at {
            Some(probe_at) if now.saturating_duration_since(probe_at) < MEMORY => self.extend_patience(length),
            _ => {
                self.patience = Duration::ZERO;
                self.probe_at = later(now, length, FIRST_PAUSE);
            }
        }
        (State::Overloaded { window: next.after_shedding(arrival, self.limit), last: now }, Change::Overloaded)
    }

    fn overloaded(&self, window: Window, arrival: Arrival, now: Instant) -> (State, Change) {
        let next = Window::new(now, arrival);
        if self.probe_at.is_some_and(|probe_at| probe_at <= now) {
            let probe = Probe { since: now, last: now, window: next, total: None };
            return (State::Probing(probe), Change::ProbeStarted);
        }
        let has_ended = window.has_ended(arrival, self.min_starts.saturating_mul(LONG_WINDOW), now);
        if has_ended && window.rejected.saturating_mul(SHARE) < window.arrived {
            return (State::Idle, Change::Recovered);
        }
        (State::Overloaded { window: if has_ended { next } else { window }, last: now }, Change::None)
    }

    fn probing(&mut self, mut probe: Probe, arrival: Arrival, now: Instant) -> (State, Change) {
        if !probe.window.has_ended(arrival, self.min_starts, now) {
            return (State::Probing(probe), Change::None);
        }
        let length = now.saturating_duration_since(probe.since);
        let next = Window::new(now, arrival);
        let Some(total) = probe.total else {
            return (State::Probing(Probe { window: next, total: Some(next), ..probe }), Change::None);
        };
        let growth = probe.window.growth(arrival, SHARE);
        let is_steep = probe.window.rejected > 0 || total.growth(arrival, STEEP_SHARE) == Growth::Grows;
        if growth != Growth::Unclear {
            probe.window = next;
        }
        if !is_steep && (length < self.patience || growth == Growth::Unclear) {
            return (State::Probing(probe), Change::None);
        }
        self.probe_at = later(now, length, PAUSE);
        if growth == Growth::None && !is_steep {
            return (State::Standing { since: now, window: next, is_first: false }, Change::Recovered);
        }
        if !is_steep {
            self.extend_patience(length);
        }
        (State::Overloaded { window: next.after_shedding(arrival, self.limit), last: now }, Change::ProbeFailed)
    }

    /// Lets the next probe take longer than one that took `length` and was not long enough.
    fn extend_patience(&mut self, length: Duration) {
        self.patience = self.patience.max(length).saturating_mul(PATIENCE_FACTOR).min(MAX_PATIENCE);
    }
}

/// Returns the time that is `factor` times `length` after `now`.
fn later(now: Instant, length: Duration, factor: u32) -> Option<Instant> {
    now.checked_add(length.saturating_mul(factor))
}

/// Returns by how much a number of starts has passed another one, or `None` if it has not yet
/// reached it. Both wrap around.
fn passed(started: u32, mark: u32) -> Option<u32> {
    Some(started.wrapping_sub(mark)).filter(|difference| *difference < u32::MAX / 2)
}

impl Window {
    fn new(since: Instant, arrival: Arrival) -> Self {
        Self { since, started: arrival.started, waiting: arrival.waiting, arrived: 0, rejected: 0, due: 0 }
    }

    /// Leaves out the calls that are shed because of the arrival with which the window starts,
    /// until `limit` are left. They leave the queue without a start.
    fn after_shedding(self, arrival: Arrival, limit: usize) -> Self {
        let itself = usize::from(arrival.fate == Fate::Admitted);
        let shed = (arrival.waiting + itself).saturating_sub(limit);
        Self { started: self.started.wrapping_add(shed as u32), ..self }
    }

    /// Counts an arrival.
    fn and(self, arrival: Arrival) -> Self {
        let is_rejected = arrival.fate != Fate::Admitted;
        Self { arrived: self.arrived + 1, rejected: self.rejected + u64::from(is_rejected), ..self }
    }

    fn length(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Returns the number of calls that have started in the window.
    fn starts(&self, arrival: Arrival) -> u64 {
        // None before the worker has shed all.
        passed(arrival.started, self.started).map_or(0, u64::from)
    }

    /// Returns `true` if the window ends with this arrival.
    fn has_ended(&self, arrival: Arrival, min_starts: u64, now: Instant) -> bool {
        self.starts(arrival) >= min_starts && self.length(now) >= MIN_WINDOW
    }

    /// Like `has_ended`, and returns the time. Reads the clock less often than once per arrival.
    fn end(&mut self, arrival: Arrival, min_starts: u64, now: impl Fn() -> Instant) -> Option<Instant> {
        let starts = self.starts(arrival);
        if starts < self.due.max(min_starts) {
            return None;
        }
        let now = now();
        let length = self.length(now).as_micros();
        let rest = MIN_WINDOW.as_micros().saturating_sub(length);
        // Half of the starts in the rest of the window, at the rate so far.
        let pause = u128::from(starts) * rest / length.max(1) / 2;
        self.due = starts.saturating_add(u64::try_from(pause).unwrap_or(u64::MAX));
        self.has_ended(arrival, min_starts, now).then_some(now)
    }

    /// Compares the growth of the queue with the `share`th part of the calls that have started. A
    /// full queue grows.
    fn growth(&self, arrival: Arrival, share: u64) -> Growth {
        let growth = u64::try_from(arrival.waiting.saturating_sub(self.waiting)).unwrap_or(u64::MAX);
        let starts = self.starts(arrival);
        if self.rejected > 0 {
            Growth::Grows
        } else if growth.saturating_mul(share) <= starts {
            Growth::None
        } else if growth.saturating_mul(growth) <= starts.saturating_mul(VARIANCE) {
            Growth::Unclear
        } else {
            Growth::Grows
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    None,
    /// The queue grows, perhaps by chance.
    Unclear,
    Grows,
}
