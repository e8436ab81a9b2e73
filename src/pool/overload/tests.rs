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
    started: u32,
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
                    self.started = self.started.wrapping_add(1); // Their permits are released too.
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
            let goodput = simulation.waits.len() as f64 * service.as_secs_f64() / threads as f64 / until.as_secs_f64();
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
            started: step / 2,
            fate: if step % 2 == 0 { Fate::Rejected } else { Fate::Admitted },
        };
        detector.observe(arrival, || start + step * MILLISECOND)
    });
    assert!(changes.any(|change| change == Change::Overloaded));
}

/// Returns a detector that is overloaded, and the time of the last arrival.
fn overloaded(start: Instant) -> (OverloadDetector, u32) {
    let mut detector = OverloadDetector::new(2);
    for step in 0..1000 {
        let arrival = Arrival { waiting: 4 + 2 * step as usize, started: step, fate: Fate::Admitted };
        if detector.observe(arrival, || start + step * MILLISECOND) == Change::Overloaded {
            return (detector, step);
        }
    }
    panic!("not overloaded: {detector:?}");
}

/// A call that is admitted while another one is observed is in the queue before it is observed.
#[test]
fn calls_that_arrive_together_after_a_pause_end_an_overload() {
    let start = Instant::now();
    for is_probing in [false, true] {
        let (mut detector, mut step) = overloaded(start);
        let mut observe = |waiting, started, fate, pause: u32| {
            step += pause;
            detector.observe(Arrival { waiting, started, fate }, || start + step * MILLISECOND)
        };
        if is_probing {
            assert_eq!(observe(30, 60, Fate::Rejected, 5000), Change::ProbeStarted);
        } else {
            assert_eq!(observe(30, 60, Fate::Rejected, 0), Change::None);
            assert_eq!(observe(4, 88, Fate::Rejected, 100), Change::None, "two have waited since before the pause");
        }
        assert_eq!(observe(3, 92, Fate::Admitted, 100), Change::Recovered, "probing: {is_probing}");
    }
}

/// Like calls that start, they release their permits.
#[test]
fn calls_that_are_shed_do_not_end_an_overload() {
    let start = Instant::now();
    for (is_after_probe, is_seen_before) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut detector, mut step) = overloaded(start);
        let (mut waiting, mut started) = (4 + 2 * step, step);
        let mut observe = |waiting: u32, started, fate, pause: u32| {
            step += pause;
            detector.observe(Arrival { waiting: waiting as usize, started, fate }, || start + step * MILLISECOND)
        };
        if is_after_probe {
            (waiting, started) = (100, 100);
            assert_eq!(observe(30, 60, Fate::Rejected, 5000), Change::ProbeStarted);
            assert_eq!(observe(40, 80, Fate::Admitted, 25), Change::None);
            assert_eq!(observe(waiting, started, Fate::Admitted, 25), Change::ProbeFailed);
        }
        if is_seen_before {
            assert_eq!(observe(waiting, started + 1, Fate::Rejected, 25), Change::None, "nothing is shed yet");
        }
        let shed = waiting + 1 - 4;
        assert_eq!(observe(3, started + shed + 1, Fate::Admitted, 25), Change::None);
        assert!(detector.is_overloaded(), "after a probe: {is_after_probe}, seen before: {is_seen_before}");
    }
}

#[test]
fn burst_long_after_a_queue_stood_is_not_judged_with_it() {
    let start = Instant::now();
    let mut detector = OverloadDetector::new(2);
    let mut observe = |waiting, started, millis: u32| {
        detector.observe(Arrival { waiting, started, fate: Fate::Admitted }, || start + millis * MILLISECOND)
    };
    // The queue of a burst stands for more than one window and is worked off.
    for step in 0..30 {
        assert_eq!(observe(30 - step as usize / 2, step, step), Change::None);
    }
    // Ten calls of the next burst arrive at the same time.
    for step in 0..30 {
        assert_eq!(observe(10 + 2 * step as usize, 100 + step, 10_000 + step), Change::None);
    }
}

#[test]
fn numbers_of_starts_may_overflow() {
    let start = Instant::now();
    let mut detector = OverloadDetector::new(2);
    let overloaded = (0..200_u32).any(|step| {
        let started = step.wrapping_sub(20);
        let arrival = Arrival { waiting: 4 + 2 * step as usize, started, fate: Fate::Admitted };
        detector.observe(arrival, || start + step * MILLISECOND) == Change::Overloaded
    });
    assert!(overloaded);
}
