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

/// What an arriving call finds, or its fate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// Number of calls that wait in the queue.
    pub(super) waiting: usize,
    /// Number of calls that have left the queue so far.
    pub(super) started: u64,
    pub(super) is_rejected: bool,
}

/// Change that an arrival reveals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The pool is overloaded: at most [`OverloadDetector::limit`] calls should wait.
    Overloaded,
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
#[derive(Debug)]
pub(super) struct OverloadDetector {
    limit: usize,
    min_starts: u64,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The queue does not stand.
    Idle,
    Standing {
        window: Window,
        is_first: bool,
    },
    Overloaded {
        window: Window,
        /// Time of the last arrival.
        last: Instant,
    },
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

    /// Records an arrival. `now` is called only during an overload, and if a window may start or
    /// end.
    pub(super) fn observe(&mut self, arrival: Arrival, now: impl Fn() -> Instant) -> Change {
        let is_standing = arrival.waiting >= self.limit;
        match &mut self.state {
            State::Idle if is_standing => {
                self.state = State::Standing { window: Window::new(now(), arrival), is_first: true };
            }
            State::Standing { .. } if !is_standing => self.state = State::Idle,
            State::Idle => {}
            State::Standing { window, is_first } => {
                window.count(arrival);
                if let Some(now) = window.end(arrival, self.min_starts, now) {
                    let is_overloaded = window.grows(arrival) && !*is_first;
                    let window = Window::new(now, arrival);
                    self.state = if is_overloaded {
                        State::Overloaded { window, last: now }
                    } else {
                        State::Standing { window, is_first: false }
                    };
                    return if is_overloaded { Change::Overloaded } else { Change::None };
                }
            }
            State::Overloaded { window, last } => {
                let now = now();
                let pause = now.saturating_duration_since(std::mem::replace(last, now));
                if arrival.waiting == 0 && pause >= MIN_WINDOW {
                    self.state = State::Idle;
                    return Change::Recovered;
                }
                window.count(arrival);
                if window.end(arrival, self.min_starts, || now).is_some() {
                    if window.rejected.saturating_mul(SHARE) < window.arrived {
                        self.state = State::Idle;
                        return Change::Recovered;
                    }
                    *window = Window::new(now, arrival);
                }
            }
        }
        Change::None
    }
}

impl Window {
    fn new(since: Instant, arrival: Arrival) -> Self {
        Self { since, started: arrival.started, waiting: arrival.waiting, arrived: 0, rejected: 0 }
    }

    fn count(&mut self, arrival: Arrival) {
        self.arrived += 1;
        self.rejected += u64::from(arrival.is_rejected);
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
        (now.saturating_duration_since(self.since) >= MIN_WINDOW).then_some(now)
    }

    fn grows(&self, arrival: Arrival) -> bool {
        let growth = u64::try_from(arrival.waiting.saturating_sub(self.waiting)).unwrap_or(u64::MAX);
        self.rejected > 0 || growth.saturating_mul(SHARE) > self.starts(arrival)
    }
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

        /// Runs until `until`. After each call, its caller calls again if the loop is `closed`.
        fn run(&mut self, until: Duration, closed: bool) {
            let start = Instant::now();
            while let Some(Reverse((now, event))) = self.events.pop().filter(|Reverse((time, _))| *time < until) {
                match event {
                    Event::End => {
                        self.busy -= 1;
                        if closed {
                            self.arrive_at(now);
                        }
                    }
                    Event::Arrival => {
                        let waiting = self.queue.len();
                        let is_rejected = waiting >= self.limit;
                        let arrival = Arrival { waiting, started: self.started, is_rejected };
                        if is_rejected {
                            self.rejected.push(now);
                        } else {
                            self.queue.push_back(now);
                        }
                        let change = self.detector.observe(arrival, || start + now);
                        match change {
                            Change::None => {}
                            Change::Overloaded => {
                                self.limit = self.detector.limit();
                                let excess = self.queue.len().saturating_sub(self.limit);
                                self.queue.drain(..excess);
                                self.rejected.extend((0..excess).map(|_| now));
                            }
                            Change::Recovered => self.limit = CAPACITY,
                        }
                        if change != Change::None {
                            self.changes.push((now, change));
                        }
                    }
                }
                self.start_calls(now);
            }
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
            simulation.run(time_for(10_000, threads, service), false);
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
            simulation.run(time_for(4000, threads, service), true);
            assert!(simulation.rejected.is_empty(), "{threads} x {service:?}: {}", simulation.rejected.len());
        }
    }

    #[test]
    fn moderate_load_is_hardly_ever_rejected() {
        for (threads, service) in pools() {
            let mut simulation = Simulation::new(threads, service);
            let until = time_for(10_000, threads, service);
            simulation.offer(0.7, Duration::ZERO, until);
            simulation.run(until, false);
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
                simulation.run(until, false);
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
            simulation.run(until, false);
            let pool = format!("{threads} x {service:?}");
            let Some((time, Change::Recovered)) = simulation.changes.last() else { panic!("{pool} stays overloaded") };
            let window = service.mul_f64(simulation.detector.min_starts as f64 / threads as f64).max(MIN_WINDOW);
            assert!(*time < overload + 4 * window, "{pool}: {:?}", *time - overload);
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
            simulation.run(overload * 4, false);
            let rejected = simulation.rejected.iter().filter(|time| **time >= burst).count();
            assert_eq!(rejected, 0, "{threads} x {service:?}");
        }
    }

    #[test]
    fn queue_that_is_always_full_is_overloaded() {
        let mut detector = OverloadDetector::new(2);
        let start = Instant::now();
        let mut changes = (0..1000).map(|step: u32| {
            let arrival = Arrival { waiting: 1024, started: u64::from(step) / 2, is_rejected: step % 2 == 0 };
            detector.observe(arrival, || start + step * MILLISECOND)
        });
        assert!(changes.any(|change| change == Change::Overloaded));
    }
}
