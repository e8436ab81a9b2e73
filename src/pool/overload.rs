//! Detection of a queue that does not drain, for [`QueuePolicy::AcceptBursts`].
//!
//! [`QueuePolicy::AcceptBursts`]: super::QueuePolicy::AcceptBursts

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
    /// Number of calls that have left the queue so far.
    pub(super) started: u64,
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
    /// The pool is overloaded: at most [`OverloadDetector::limit`] calls should wait.
    Overloaded,
    /// The limit should be raised for a moment, to find out whether the queue would still grow.
    ProbeStarted,
    /// The queue still grows: the limit applies again.
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
///   with a call that finds the queue empty and comes later than a minimum window after the last.
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
    window: Window,
    /// All that follows the first window. `None` during the first.
    total: Option<Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    /// Values at the start of the window.
    started: u64,
    waiting: usize,
    /// Arrivals since the start of the window.
    arrived: u64,
    rejected: u64,
}

impl OverloadDetector {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            limit: threads.saturating_mul(WAITING_PER_THREAD).max(MIN_WAITING),
            min_starts: u64::try_from(threads).unwrap_or(u64::MAX).saturating_mul(STARTS_PER_THREAD).max(MIN_STARTS),
            state: State::Idle,
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
        let is_standing = arrival.waiting >= self.limit;
        let is_ignored = arrival.fate == Fate::RejectedEarly && !matches!(self.state, State::Overloaded { .. });
        if is_ignored {
            return Change::None;
        }
        let (state, change) = match self.state {
            State::Idle if is_standing => {
                let now = now();
                (State::Standing { since: now, window: Window::new(now, arrival), is_first: true }, Change::None)
            }
            State::Standing { .. } if !is_standing => (State::Idle, Change::None),
            State::Idle => return Change::None,
            State::Standing { since, window, is_first } => {
                self.standing(since, window.and(arrival), is_first, arrival, now)
            }
            State::Overloaded { window, last } => self.overloaded(window.and(arrival), last, arrival, now()),
            State::Probing(Probe { total: Some(total), .. }) if !is_standing && self.has_waited(total, &now) => {
                (State::Idle, Change::Recovered)
            }
            State::Probing(probe) => self.probing(Probe { window: probe.window.and(arrival), ..probe }, arrival, now),
        };
        self.state = state;
        change
    }

    /// Returns `true` if a probe whose first window ended with the start of `total` may end.
    fn has_waited(&self, total: Window, now: impl Fn() -> Instant) -> bool {
        self.patience.is_zero() || total.length(now()) >= self.patience
    }

    fn standing(
        &mut self,
        since: Instant,
        window: Window,
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
        (State::Overloaded { window: next, last: now }, Change::Overloaded)
    }

    fn overloaded(&self, window: Window, last: Instant, arrival: Arrival, now: Instant) -> (State, Change) {
        if arrival.waiting == 0 && now.saturating_duration_since(last) >= MIN_WINDOW {
            return (State::Idle, Change::Recovered);
        }
        let next = Window::new(now, arrival);
        if self.probe_at.is_some_and(|probe_at| probe_at <= now) {
            let probe = Probe { since: now, window: next, total: None };
            return (State::Probing(probe), Change::ProbeStarted);
        }
        let has_ended = window.end(arrival, self.min_starts.saturating_mul(LONG_WINDOW), || now).is_some();
        if has_ended && window.rejected.saturating_mul(SHARE) < window.arrived {
            return (State::Idle, Change::Recovered);
        }
        (State::Overloaded { window: if has_ended { next } else { window }, last: now }, Change::None)
    }

    fn probing(&mut self, mut probe: Probe, arrival: Arrival, now: impl Fn() -> Instant) -> (State, Change) {
        let Some(now) = probe.window.end(arrival, self.min_starts, now) else {
            return (State::Probing(probe), Change::None);
        };
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
        (State::Overloaded { window: next, last: now }, Change::ProbeFailed)
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

impl Window {
    fn new(since: Instant, arrival: Arrival) -> Self {
        Self { since, started: arrival.started, waiting: arrival.waiting, arrived: 0, rejected: 0 }
    }

    /// Counts an arrival.
    fn and(self, arrival: Arrival) -> Self {
        let is_rejected = arrival.fate != Fate::Admitted;
        Self { arrived: self.arrived + 1, rejected: self.rejected + u64::from(is_rejected), ..self }
    }

    fn length(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    fn starts(&self, arrival: Arrival) -> u64 {
        arrival.started.saturating_sub(self.started)
    }

    /// Returns the time if the window ends with this arrival.
    fn end(&self, arrival: Arrival, min_starts: u64, now: impl Fn() -> Instant) -> Option<Instant> {
        if self.starts(arrival) < min_starts {
            return None;
        }
        let now = now();
        (self.length(now) >= MIN_WINDOW).then_some(now)
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

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use std::{
        cmp::Reverse,
        collections::{BinaryHeap, VecDeque},
    };

    use super::*;

    /// Capacity of the queue while the pool is not overloaded.
    const CAPACITY: usize = 1024;

    /// Pseudorandom numbers (splitmix64), the same in every run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }

        /// Returns a duration with an exponential distribution, as between random arrivals.
        fn duration(&mut self, mean: Duration) -> Duration {
            mean.mul_f64(-(1.0 - self.next()).ln())
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Event {
        Arrival,
        End,
    }

    /// A pool of which every call takes about `service`, simulated.
    struct Simulation {
        threads: usize,
        service: Duration,
        random: Random,
        detector: OverloadDetector,
        limit: usize,
        /// Time after which the caller of a call that has ended calls again.
        calls_again_after: Option<Duration>,
        /// Time after which the caller of a rejected call calls again.
        retries_after: Option<Duration>,
        /// Arrival times of the calls that wait.
        queue: VecDeque<Duration>,
        started: u64,
        busy: usize,
        events: BinaryHeap<Reverse<(Duration, Event)>>,
        /// Waits of the calls that started, with their arrivals.
        waits: Vec<(Duration, Duration)>,
        /// Times at which calls were rejected or shed.
        rejected: Vec<Duration>,
        changes: Vec<(Duration, Change)>,
    }

    impl Simulation {
        fn new(threads: usize, service: Duration) -> Self {
            Self {
                threads,
                service,
                random: Random(1),
                detector: OverloadDetector::new(threads),
                limit: CAPACITY,
                calls_again_after: None,
                retries_after: None,
                queue: VecDeque::new(),
                started: 0,
                busy: 0,
                events: BinaryHeap::new(),
                waits: Vec::new(),
                rejected: Vec::new(),
                changes: Vec::new(),
            }
        }

        fn arrive_at(&mut self, time: Duration) {
            self.events.push(Reverse((time, Event::Arrival)));
        }

        /// Adds random arrivals at a multiple of the capacity.
        fn offer(&mut self, load: f64, from: Duration, until: Duration) {
            let mean = self.service.div_f64(load * self.threads as f64);
            let mut time = from;
            loop {
                time += self.random.duration(mean);
                if time >= until {
                    break;
                }
                self.arrive_at(time);
            }
        }

        fn run(&mut self, until: Duration) {
            let start = Instant::now();
            while let Some(Reverse((now, event))) = self.events.pop().filter(|Reverse((time, _))| *time < until) {
                match event {
                    Event::End => {
                        self.busy -= 1;
                        self.calls_again_after.into_iter().for_each(|delay| self.arrive_at(now + delay));
                    }
                    Event::Arrival => self.arrive(start, now),
                }
                self.start_calls(now);
            }
        }

        fn arrive(&mut self, start: Instant, now: Duration) {
            let waiting = self.queue.len();
            let fate = if waiting >= self.limit { Fate::Rejected } else { Fate::Admitted };
            let arrival = Arrival { waiting, started: self.started, fate };
            match fate {
                Fate::Admitted => self.queue.push_back(now),
                _ => self.reject(now),
            }
            let change = self.detector.observe(arrival, || start + now);
            match change {
                Change::None => return,
                Change::Overloaded | Change::ProbeFailed => {
                    self.limit = self.detector.limit();
                    while self.queue.len() > self.limit {
                        self.queue.pop_front();
                        self.reject(now);
                    }
                }
                Change::ProbeStarted | Change::Recovered => self.limit = CAPACITY,
            }
            self.changes.push((now, change));
        }

        fn reject(&mut self, now: Duration) {
            self.rejected.push(now);
            let Some(delay) = self.retries_after else { return };
            let delay = delay.mul_f64(0.9 + 0.2 * self.random.next());
            self.arrive_at(now + delay);
        }

        /// Starts calls on idle threads.
        fn start_calls(&mut self, now: Duration) {
            while self.busy < self.threads {
                let Some(arrived) = self.queue.pop_front() else { break };
                self.waits.push((arrived, now - arrived));
                self.started += 1;
                self.busy += 1;
                let service = self.random.duration(self.service);
                self.events.push(Reverse((now + service, Event::End)));
            }
        }

        fn p99_wait(&self) -> Duration {
            let mut waits: Vec<_> = self.waits.iter().map(|(_, wait)| *wait).collect();
            waits.sort_unstable();
            waits[waits.len() * 99 / 100]
        }

        fn refused_share(&self) -> f64 {
            self.rejected.len() as f64 / (self.rejected.len() + self.waits.len()) as f64
        }
    }

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Pools of different sizes, and calls from 50 us to 500 ms.
    fn pools() -> impl Iterator<Item = (usize, Duration)> {
        let services = [MILLISECOND / 20, 5 * MILLISECOND, 500 * MILLISECOND];
        [1, 2, 16].into_iter().flat_map(move |threads| services.map(|service| (threads, service)))
    }

    /// A time in which a pool of this kind runs about `calls` calls.
    fn time_for(calls: u32, threads: usize, service: Duration) -> Duration {
        (service * calls).div_f64(threads as f64).max(200 * MILLISECOND)
    }

    #[test]
    fn burst_on_an_idle_pool_is_not_rejected() {
        for (threads, service) in pools() {
            let mut simulation = Simulation::new(threads, service);
            (0..100).for_each(|_| simulation.arrive_at(MILLISECOND));
            simulation.run(time_for(10_000, threads, service));
            assert_eq!((simulation.waits.len(), simulation.rejected.len()), (100, 0), "{threads} x {service:?}");
        }
    }

    #[test]
    fn callers_that_wait_for_answers_are_not_rejected() {
        for (threads, service) in pools() {
            let mut simulation = Simulation::new(threads, service);
            for caller in 0..100 {
                simulation.arrive_at(caller * MILLISECOND / 10);
            }
            simulation.calls_again_after = Some(Duration::ZERO);
            simulation.run(time_for(4000, threads, service));
            assert!(simulation.rejected.is_empty(), "{threads} x {service:?}: {}", simulation.rejected.len());
        }
    }

    #[test]
    fn moderate_load_is_hardly_ever_rejected() {
        for (threads, service) in pools() {
            let mut simulation = Simulation::new(threads, service);
            let until = time_for(10_000, threads, service);
            simulation.offer(0.7, Duration::ZERO, until);
            simulation.run(until);
            assert!(simulation.refused_share() < 0.02, "{threads} x {service:?}: {}", simulation.refused_share());
        }
    }

    #[test]
    fn overload_keeps_threads_busy_and_waits_short() {
        for (threads, service) in pools() {
            for load in [2.0, 3.0, 10.0] {
                let mut simulation = Simulation::new(threads, service);
                let until = time_for(4000, threads, service);
                simulation.offer(load, Duration::ZERO, until);
                simulation.run(until);
                let pool = format!("{threads} x {service:?} at {load}");
                let goodput =
                    simulation.waits.len() as f64 * service.as_secs_f64() / threads as f64 / until.as_secs_f64();
                assert!(goodput > 0.95, "{pool}: {goodput}");
                // The first calls wait until the overload is detected.
                let detected = simulation.changes[0].0;
                simulation.waits.retain(|(arrived, _)| *arrived > detected);
                let p99 = simulation.p99_wait();
                let mean_wait = service.mul_f64(simulation.detector.limit() as f64 / threads as f64);
                assert!(p99 < 5 * mean_wait, "{pool}: {p99:?}, detected after {detected:?}");
            }
        }
    }

    #[test]
    fn overload_ends_soon_after_its_cause() {
        for (threads, service) in pools() {
            let mut simulation = Simulation::new(threads, service);
            let overload = time_for(4000, threads, service);
            let until = overload * 2;
            simulation.offer(3.0, Duration::ZERO, overload);
            simulation.offer(0.5, overload, until);
            simulation.run(until);
            let pool = format!("{threads} x {service:?}");
            let Some((time, Change::Recovered)) = simulation.changes.last() else { panic!("{pool} stays overloaded") };
            let window = service.mul_f64(simulation.detector.min_starts as f64 / threads as f64).max(MIN_WINDOW);
            assert!(*time < overload + 10 * window, "{pool}: {:?}", *time - overload);
        }
    }

    #[test]
    fn burst_long_after_an_overload_is_not_rejected() {
        for (threads, service) in pools() {
            let mut simulation = Simulation::new(threads, service);
            let overload = time_for(2000, threads, service);
            simulation.offer(3.0, Duration::ZERO, overload);
            let burst = overload * 2;
            (0..100).for_each(|_| simulation.arrive_at(burst));
            simulation.run(overload * 4);
            let rejected = simulation.rejected.iter().filter(|time| **time >= burst).count();
            assert_eq!(rejected, 0, "{threads} x {service:?}");
        }
    }

    /// Callers who connect one after the other fill the queue like an overload.
    #[test]
    fn callers_who_return_after_a_rejection_are_served_again() {
        for retries_after in [MILLISECOND, 10 * MILLISECOND, 1000 * MILLISECOND] {
            let mut simulation = Simulation::new(2, 5 * MILLISECOND);
            simulation.calls_again_after = Some(Duration::ZERO);
            simulation.retries_after = Some(retries_after);
            (0..100).for_each(|caller| simulation.arrive_at(caller * 10 * MILLISECOND));
            simulation.run(Duration::from_secs(30));
            let last = simulation.rejected.last().copied().unwrap_or_default();
            assert!(last < Duration::from_secs(15), "{retries_after:?}: {last:?}, {:?}", simulation.changes);
        }
    }

    #[test]
    fn short_bursts_after_an_overload_are_not_rejected() {
        let mut simulation = Simulation::new(1, MILLISECOND);
        simulation.offer(3.0, Duration::ZERO, 200 * MILLISECOND);
        for burst in 0..1000 {
            (0..10).for_each(|_| simulation.arrive_at(210 * MILLISECOND + burst * 15 * MILLISECOND));
        }
        simulation.run(Duration::from_secs(15));
        let last = simulation.rejected.last().copied().unwrap_or_default();
        assert!(last < Duration::from_secs(2), "{last:?}, {:?}", simulation.changes);
    }

    #[test]
    fn queue_that_is_always_full_is_overloaded() {
        let mut detector = OverloadDetector::new(2);
        let start = Instant::now();
        let mut changes = (0..1000).map(|step: u32| {
            let arrival = Arrival {
                waiting: 1024,
                started: u64::from(step) / 2,
                fate: if step % 2 == 0 { Fate::Rejected } else { Fate::Admitted },
            };
            detector.observe(arrival, || start + step * MILLISECOND)
        });
        assert!(changes.any(|change| change == Change::Overloaded));
    }
}
