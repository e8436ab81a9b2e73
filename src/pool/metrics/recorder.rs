use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::{
    panic::ignore_panic,
    pool::error::{CallError, CancelReason},
};

/// Reasons for which a call has no caller.
const CANCELLATIONS: [CancelReason; 2] = [CancelReason::CallerLeft, CancelReason::DeadlineExceeded];

/// Handles of one pool, registered when it is created, so that counters are 0 before their
/// first event, and again at its first call. A recorder that is installed in between therefore
/// receives everything.
#[derive(Debug)]
pub(super) struct Recorder {
    pool: Arc<str>,
    /// 0 if it is not known.
    max_threads: usize,
    handles: OnceLock<Handles>,
}

pub(super) struct Handles {
    pool: Arc<str>,
    max_threads: Gauge,
    pub(super) queue_depth: Gauge,
    pub(super) queue_wait: Histogram,
    pub(super) active: Gauge,
    pub(super) resume_wait: Histogram,
    pub(super) run: Histogram,
    pub(super) busy: Counter,
    cancelled_run: [Counter; 2],
    rejected: [Counter; REJECTIONS.len()],
    pub(super) abandoned: Counter,
    pub(super) panicked: Counter,
    pub(super) misplaced: Counter,
    pub(super) stalls: Counter,
    pub(super) stalled: Gauge,
    pub(super) overloaded: Gauge,
}

impl Recorder {
    pub(super) fn new(pool: Arc<str>) -> Self {
        ignore_panic(|| drop(Handles::register(&pool)));
        Self { pool, max_threads: 0, handles: OnceLock::new() }
    }

    pub(super) fn set_max_threads(&mut self, threads: usize) {
        self.max_threads = threads;
    }

    /// Removes the pool from the gauges that describe it.
    pub(super) fn close(&self) {
        if let Some(handles) = self.handles.get() {
            handles.max_threads.decrement(self.max_threads as f64);
        }
    }

    pub(super) fn get(&self) -> &Handles {
        self.handles.get_or_init(|| {
            let handles = Handles::register(&self.pool);
            // Pools of the same name add up.
            handles.max_threads.increment(self.max_threads as f64);
            handles
        })
    }
}

/// Errors of calls that are counted as rejected, in the order of their discriminants.
const REJECTIONS: [CallError; 6] = [
    CallError::NoRuntime,
    CallError::Overloaded,
    CallError::KeyLimited,
    CallError::Closed,
    CallError::DeadlineExceeded,
    CallError::Deadlock,
];

const _: () = {
    let mut index = 0;
    while index < REJECTIONS.len() {
        assert!(REJECTIONS[index] as usize == index);
        index += 1;
    }
};

/// Registers units and help texts.
fn describe() {
    let (count, seconds, microseconds) = (Unit::Count, Unit::Seconds, Unit::Microseconds);
    describe_gauge!("offload_queue_depth", count, "Calls that wait for capacity or for their first poll.");
    describe_histogram!("offload_queue_wait_seconds", seconds, "Time from a call to its first poll.");
    describe_gauge!("offload_active", count, "Threads that poll a call.");
    describe_histogram!("offload_resume_wait_seconds", seconds, "Time from each wake to the poll that follows it.");
    describe_histogram!("offload_run_seconds", seconds, "Total time of a call's polls.");
    describe_counter!(
        "offload_busy_microseconds_total",
        microseconds,
        "Time that threads ran calls. Time of a call that runs is added when its poll ends."
    );
    describe_gauge!("offload_max_threads", count, "Threads that may run calls at the same time.");
    describe_counter!(
        "offload_cancelled_run_microseconds_total",
        microseconds,
        "Time that calls ran after their caller had left or their deadline had passed, by reason."
    );
    describe_counter!("offload_rejected_total", count, "Rejected calls, by reason.");
    describe_counter!("offload_abandoned_total", count, "Calls whose caller left before they ended.");
    describe_counter!("offload_panicked_total", count, "Panics of work.");
    describe_counter!(
        "offload_misplaced_total",
        count,
        "Calls that ran on their caller's thread and occupied it for more than 1 ms."
    );
    describe_counter!("offload_stalls_total", count, "Times that calls waited and none made progress for 10 s.");
    describe_gauge!("offload_stalled", count, "1 while calls wait and none makes progress, otherwise 0.");
    describe_gauge!(
        "offload_overloaded",
        count,
        "1 while calls are rejected because the queue does not drain, otherwise 0."
    );
}

impl Handles {
    fn register(pool: &Arc<str>) -> Self {
        describe();
        let labels = [("pool", pool.to_string())];
        Self {
            max_threads: gauge!("offload_max_threads", &labels),
            pool: pool.clone(),
            queue_depth: gauge!("offload_queue_depth", &labels),
            queue_wait: histogram!("offload_queue_wait_seconds", &labels),
            active: gauge!("offload_active", &labels),
            resume_wait: histogram!("offload_resume_wait_seconds", &labels),
            run: histogram!("offload_run_seconds", &labels),
            busy: counter!("offload_busy_microseconds_total", &labels),
            cancelled_run: CANCELLATIONS.map(|reason| {
                let labels = [("pool", pool.to_string()), ("reason", reason.as_str().to_owned())];
                counter!("offload_cancelled_run_microseconds_total", &labels)
            }),
            abandoned: counter!("offload_abandoned_total", &labels),
            panicked: counter!("offload_panicked_total", &labels),
            misplaced: counter!("offload_misplaced_total", &labels),
            stalls: counter!("offload_stalls_total", &labels),
            stalled: gauge!("offload_stalled", &labels),
            overloaded: gauge!("offload_overloaded", &labels),
            rejected: REJECTIONS.map(|error| {
                let counter = rejected(pool, error);
                counter.increment(0);
                counter
            }),
        }
    }

    /// Counts a call that was rejected with `error`.
    pub(super) fn rejected(&self, error: CallError) {
        match self.rejected.get(error as usize) {
            Some(counter) => counter.increment(1),
            // A pool of the user can fail calls with any error.
            None => rejected(&self.pool, error).increment(1),
        }
    }

    /// Returns the counter of the cancelled calls that had lost their caller for this reason.
    pub(super) fn cancelled_run(&self, reason: CancelReason) -> &Counter {
        &self.cancelled_run[usize::from(reason == CANCELLATIONS[1])]
    }
}

fn rejected(pool: &str, error: CallError) -> Counter {
    counter!("offload_rejected_total", "pool" => pool.to_owned(), "reason" => error.as_str())
}

impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}
