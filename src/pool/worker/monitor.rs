//! The monitor of a pool: a thread that looks for a stall while calls wait.

use std::{sync::Weak, time::Duration};

use tokio::time::Instant;

use super::WorkerPool;
use crate::{
    panic::ignore_panic,
    pool::stall::{Change, OBSERVATIONS, StallDetector},
};

/// Number of intervals without a waiting call after which the monitor exits. A call that waits
/// later spawns a new thread.
const MAX_IDLE_INTERVALS: u32 = 60;

impl WorkerPool {
    #[cold]
    pub(super) fn start_monitor(&self) {
        if !self.monitor.must_spawn() {
            return;
        }
        let (pool, interval) = (self.this.clone(), self.config.stall_timeout / OBSERVATIONS);
        let thread = std::thread::Builder::new().name("offload-monitor".to_owned());
        if thread.spawn(move || run_monitor(&pool, interval)).is_err() {
            self.monitor.try_exit(|| true); // The next call tries again.
        }
    }

    /// Looks for a stall. Called by the monitor, once per interval.
    fn observe(&self, detector: &mut StallDetector) {
        let metrics = self.admission.metrics();
        let nested = self.admission.nested_waits();
        let observation = metrics.observe();
        match detector.observe(Instant::now(), observation) {
            Change::None => {}
            Change::Stalled(since) => metrics.stalled(since, observation, nested.len()),
            Change::Recovered => metrics.recovered(),
        }
        if detector.is_slow() {
            self.executor.retry();
        }
        // A worker that is not active has been asked for, or has given its thread back to an
        // executor with other users. It may still get a thread once their work ends.
        let no_thread_to_come = observation.active > 0 && observation.active >= self.threads();
        if detector.is_stalled() && no_thread_to_come && nested.len() >= observation.active {
            let waits = nested.fail_all();
            if waits > 0 {
                metrics.deadlocked(waits);
            }
        }
    }
}

/// Runs on the monitor's thread, until the pool is dropped or no call has waited for a while.
fn run_monitor(pool: &Weak<WorkerPool>, interval: Duration) {
    let Some(timeout) = pool.upgrade().map(|pool| pool.config.stall_timeout) else { return };
    let (mut detector, mut idle_intervals) = (StallDetector::new(timeout), 0);
    loop {
        std::thread::sleep(interval);
        let Some(pool) = pool.upgrade() else { return };
        // A recorder or a subscriber may panic.
        ignore_panic(|| pool.observe(&mut detector));
        idle_intervals = if detector.is_idle() { idle_intervals + 1 } else { 0 };
        if idle_intervals >= MAX_IDLE_INTERVALS && pool.monitor.try_exit(|| pool.scheduler.is_empty()) {
            return;
        }
    }
}
