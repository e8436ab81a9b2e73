//! The thread that finds steps which have not ended.

use std::{
    cell::OnceCell,
    process,
    sync::{Arc, LazyLock},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    blocked::ThreadInfo,
    slot::{Slot, Visit},
    watch::Watch,
};
use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// Period at which the watchdog samples all threads. It never sees most polls, and reports a step
/// at most this much later than due.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// Number of samples without a step after which a thread is no longer sampled: 10 s.
const MAX_IDLE_SAMPLES: u32 = 200;

/// All threads that have run a step of any layer in the last seconds. There is one watchdog for the
/// process, so a thread pays for one slot however many layers and runtimes there are.
static WATCHDOG: LazyLock<Watchdog> = LazyLock::new(Watchdog::new);

thread_local! {
    static CURRENT: OnceCell<Arc<WatchedThread>> = const { OnceCell::new() };
}

/// Runs a step of this thread. While it runs, the watchdog can see `watch`.
#[inline]
pub(super) fn watched<T>(watch: &Watch, work: impl FnOnce() -> T) -> T {
    if CURRENT.try_with(|_| ()).is_err() {
        return work(); // within a destructor of another thread-local
    }
    CURRENT.with(|current| {
        let current = current.get_or_init(WatchedThread::current);
        current.slot.run(watch, || WATCHDOG.attach(current), work)
    })
}

/// A thread that runs steps. It is dropped when the thread has exited.
#[derive(Debug)]
struct WatchedThread {
    info: ThreadInfo,
    slot: Slot<Watch, Progress>,
}

impl WatchedThread {
    fn current() -> Arc<Self> {
        Arc::new(Self { info: ThreadInfo::current(), slot: Slot::new() })
    }
}

#[derive(Debug)]
struct Watchdog {
    /// The process in which the watchdog runs. After a fork, the lock may be held by a thread that
    /// does not exist, so it must not be acquired.
    process: u32,
    state: Mutex<State>,
}

/// Invariant: while a slot is attached, its thread is a member. While there are members, the
/// watchdog runs.
#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
    is_running: bool,
}

#[derive(Debug)]
struct Member {
    thread: Arc<WatchedThread>,
    idle_samples: u32,
}

/// A step that has not ended, to be reported without any lock.
struct Report {
    watch: Watch,
    thread: Arc<WatchedThread>,
    duration: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Number of threads with a step that was reported and has not ended.
    blocked: usize,
    /// `true` if no member is left and the watchdog must exit.
    is_last: bool,
}

impl Watchdog {
    fn new() -> Self {
        Self { process: process::id(), state: Mutex::default() }
    }

    /// Adds the current thread, and spawns the watchdog if it does not run. If that fails, the slot
    /// stays detached, and the thread's next step tries again.
    #[cold]
    fn attach(&'static self, thread: &Arc<WatchedThread>) {
        if self.process != process::id() {
            return;
        }
        let mut state = lock(&self.state);
        if !state.is_running {
            let watchdog = std::thread::Builder::new().name("offload-detector".to_owned());
            state.is_running = watchdog.spawn(|| self.run()).is_ok();
        }
        if state.is_running {
            state.members.push(Member { thread: thread.clone(), idle_samples: 0 });
            thread.slot.attach();
        }
    }

    /// The watchdog's thread. It is in no runtime, where the clock could be paused.
    fn run(&self) {
        let mut reports = Vec::new();
        let mut blocked = 0;
        loop {
            std::thread::sleep(SAMPLE_INTERVAL);
            let sample = self.sample(Instant::now(), &mut reports);
            for Report { watch, thread, duration } in reports.drain(..) {
                // The drop of the clone may be the last one of the user's callback.
                ignore_panic(move || watch.report_still_blocked(&thread.info, duration));
            }
            if std::mem::replace(&mut blocked, sample.blocked) != blocked {
                record_blocked(blocked);
            }
            if sample.is_last {
                return;
            }
        }
    }

    fn sample(&self, now: Instant, reports: &mut Vec<Report>) -> Sample {
        let mut state = lock(&self.state);
        let mut blocked = 0;
        state.members.retain_mut(|member| {
            // The other reference is the thread's own.
            if Arc::strong_count(&member.thread) == 1 {
                return false;
            }
            let (before, mut is_blocked) = (reports.len(), false);
            let visit = member.thread.slot.visit(|watch, progress| {
                if let Some(duration) = progress.observe(now, watch.still_blocked_after()) {
                    reports.push(Report { watch: watch.clone(), thread: member.thread.clone(), duration });
                }
                is_blocked |= progress.is_reported;
            });
            reports[before..].reverse(); // the outermost first, which began first
            blocked += usize::from(is_blocked);
            member.idle_samples = if visit == Visit::Idle { member.idle_samples + 1 } else { 0 };
            member.idle_samples < MAX_IDLE_SAMPLES || !member.thread.slot.try_detach()
        });
        state.is_running = !state.members.is_empty();
        Sample { blocked, is_last: !state.is_running }
    }
}

/// Sets the gauge. Without feature `metrics` it has no effect.
#[cfg_attr(not(feature = "metrics"), expect(unused_variables))]
fn record_blocked(threads: usize) {
    #[cfg(feature = "metrics")]
    ignore_panic(|| {
        let help = "Threads that run a step which has lasted too long and has not ended.";
        metrics::describe_gauge!("offload_blocked_threads", metrics::Unit::Count, help);
        metrics::gauge!("offload_blocked_threads").set(threads as f64);
    });
}

/// The watchdog's note on a step that has not ended. Pure: time is an argument.
#[derive(Debug, Default)]
struct Progress {
    /// Time of the first sample that has seen the step, which began before. `None` before.
    since: Option<Instant>,
    /// Duration at which the step is reported next.
    next: Duration,
    is_reported: bool,
}

impl Progress {
    /// Returns the duration of the step if it must be reported: the first time after `after`, then
    /// each time the duration has doubled. The duration is that which was observed, so the real one
    /// is up to one interval longer.
    fn observe(&mut self, now: Instant, after: Duration) -> Option<Duration> {
        let Some(since) = self.since else {
            (self.since, self.next) = (Some(now), after);
            return None;
        };
        let duration = now.saturating_duration_since(since);
        if duration < self.next {
            return None;
        }
        while self.next <= duration && self.next < Duration::MAX {
            self.next = self.next.saturating_mul(2);
        }
        self.is_reported = true;
        Some(duration)
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_millis(100);

    /// Observes a step at these milliseconds. Returns the durations that are reported.
    fn reported(after: Duration, times: impl IntoIterator<Item = u64>) -> Vec<u128> {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let observe = |time| progress.observe(start + Duration::from_millis(time), after);
        times.into_iter().filter_map(observe).map(|duration| duration.as_millis()).collect()
    }

    /// Returns a watchdog without a thread, which the test drives.
    fn driven() -> &'static Watchdog {
        let state = Mutex::new(State { is_running: true, ..State::default() });
        Box::leak(Box::new(Watchdog { process: process::id(), state }))
    }

    /// Runs a step, and `during` within it.
    fn step(watchdog: &'static Watchdog, thread: &Arc<WatchedThread>, during: impl FnOnce()) {
        thread.slot.run(&Watch::for_tests(), || watchdog.attach(thread), during);
    }

    /// Samples at this millisecond. Returns the number of reports and of blocked threads.
    fn sample(watchdog: &Watchdog, start: Instant, time: u64) -> (usize, usize) {
        let mut reports = Vec::new();
        let sample = watchdog.sample(start + Duration::from_millis(time), &mut reports);
        (reports.len(), sample.blocked)
    }

    #[test]
    fn nested_steps_are_reported_until_they_end() {
        let (watchdog, thread, start) = (driven(), WatchedThread::current(), Instant::now());
        step(watchdog, &thread, || {
            assert_eq!(sample(watchdog, start, 0), (0, 0));
            step(watchdog, &thread, || {
                assert_eq!(sample(watchdog, start, 100), (1, 1), "the outer step");
                assert_eq!(sample(watchdog, start, 200), (2, 1), "both steps");
            });
            assert_eq!(sample(watchdog, start, 250), (0, 1));
        });
        assert_eq!(sample(watchdog, start, 300), (0, 0));
    }

    #[test]
    fn steps_in_the_same_place_are_different_steps() {
        let (watchdog, thread, start) = (driven(), WatchedThread::current(), Instant::now());
        for time in 0..10 {
            step(watchdog, &thread, || assert_eq!(sample(watchdog, start, time * 100), (0, 0)));
        }
    }

    #[test]
    fn panicking_step_ends() {
        let (watchdog, thread, start) = (driven(), WatchedThread::current(), Instant::now());
        ignore_panic(|| step(watchdog, &thread, || std::panic::resume_unwind(Box::new("a step"))));
        assert_eq!(sample(watchdog, start, 0), (0, 0));
        assert_eq!(sample(watchdog, start, 200), (0, 0));
    }

    #[test]
    fn idle_thread_leaves_and_returns_with_its_next_step() {
        let (watchdog, thread, start) = (driven(), WatchedThread::current(), Instant::now());
        step(watchdog, &thread, || {});
        let samples = (0..).take_while(|_| !watchdog.sample(start, &mut Vec::new()).is_last).count();
        assert_eq!(samples, MAX_IDLE_SAMPLES as usize);
        assert!(!lock(&watchdog.state).is_running);
        lock(&watchdog.state).is_running = true;
        step(watchdog, &thread, || {
            assert_eq!(sample(watchdog, start, 0), (0, 0));
            assert_eq!(sample(watchdog, start, 100), (1, 1));
        });
    }

    #[test]
    fn watchdog_forgets_threads_that_exit() {
        let (watchdog, start) = (driven(), Instant::now());
        let thread = WatchedThread::current();
        step(watchdog, &thread, || {});
        drop(thread);
        assert!(watchdog.sample(start, &mut Vec::new()).is_last);
    }

    #[test]
    fn forked_process_runs_steps_without_a_watchdog() {
        let watchdog = Box::leak(Box::new(Watchdog { process: 0, state: Mutex::default() }));
        let (thread, mut ran) = (WatchedThread::current(), false);
        let _held = lock(&watchdog.state); // by a thread that the fork does not have
        step(watchdog, &thread, || ran = true);
        assert!(ran);
    }

    #[test]
    fn step_is_reported_each_time_its_duration_doubles() {
        assert_eq!(reported(AFTER, (0..2000).step_by(50)), [100, 200, 400, 800, 1600]);
        assert!(reported(AFTER, (7..100).step_by(50)).is_empty());
    }

    #[test]
    fn late_sample_reports_a_step_once() {
        assert_eq!(reported(AFTER, [0, 5000, 5050, 6300, 6400]), [5000, 6400]);
    }

    #[test]
    fn step_with_an_endless_threshold_is_not_reported() {
        assert!(reported(Duration::MAX, [0, 1_000_000_000]).is_empty());
    }
}
