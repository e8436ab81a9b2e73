//! Counts the events of a pool's processes: always in atomics, for
//! [`ProcessPoolStats`](super::ProcessPoolStats); with feature `metrics` also in the installed
//! recorder; with feature `tracing` as events.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::error::{KilledBy, StartError};

/// The counters. They only increase.
pub(super) struct Metrics {
    #[cfg(any(feature = "metrics", feature = "tracing"))]
    pool: Arc<str>,
    /// Processes that were started, ready or not.
    spawned: AtomicU64,
    /// Processes that were reaped.
    ended: AtomicU64,
    pub(super) started: AtomicU64,
    pub(super) start_failures: AtomicU64,
    pub(super) recycled: AtomicU64,
    /// By reason, in the order of [`KilledBy::index`].
    pub(super) killed: [AtomicU64; 4],
    pub(super) exited: AtomicU64,
    pub(super) protocol_errors: AtomicU64,
    pub(super) output_discarded: AtomicU64,
}

#[cfg(feature = "metrics")]
const REASONS: [KilledBy; 4] = [KilledBy::Timeout, KilledBy::Memory, KilledBy::Cancelled, KilledBy::Crash(0)];

impl Metrics {
    pub(super) fn new(pool: &Arc<str>) -> Self {
        let metrics = Self {
            #[cfg(any(feature = "metrics", feature = "tracing"))]
            pool: pool.clone(),
            spawned: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            started: AtomicU64::new(0),
            start_failures: AtomicU64::new(0),
            recycled: AtomicU64::new(0),
            killed: Default::default(),
            exited: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            output_discarded: AtomicU64::new(0),
        };
        metrics.register();
        let _ = pool;
        metrics
    }

    /// Registers the counters, so that they are 0 before their first event.
    fn register(&self) {
        #[cfg(feature = "metrics")]
        crate::panic::ignore_panic(|| {
            use metrics::{Unit::Count, describe_counter, describe_gauge};
            describe_gauge!("offload_processes", Count, "Processes that are not reaped.");
            describe_counter!("offload_process_starts_total", Count, "Processes that were started and became ready.");
            describe_counter!("offload_process_start_failures_total", Count, "Processes that could not be started.");
            describe_counter!("offload_process_recycled_total", Count, "Processes that were replaced, by reason.");
            describe_counter!(
                "offload_process_killed_total",
                Count,
                "Processes that were killed or crashed, by reason."
            );
            describe_counter!("offload_process_exits_total", Count, "Processes that exited while they ran a job.");
            describe_counter!(
                "offload_process_protocol_errors_total",
                Count,
                "Processes that broke the protocol while they ran a job, and were killed."
            );
            for name in [
                "offload_process_starts_total",
                "offload_process_start_failures_total",
                "offload_process_exits_total",
                "offload_process_protocol_errors_total",
            ] {
                self.counter(name).increment(0);
            }
            for by in REASONS {
                self.killed_counter(by).increment(0);
            }
        });
    }

    #[cfg(feature = "metrics")]
    fn counter(&self, name: &'static str) -> metrics::Counter {
        metrics::counter!(name, "pool" => self.pool.to_string())
    }

    #[cfg(feature = "metrics")]
    fn killed_counter(&self, by: KilledBy) -> metrics::Counter {
        metrics::counter!("offload_process_killed_total", "pool" => self.pool.to_string(), "by" => by.as_str())
    }

    /// Number of processes that are not reaped.
    pub(super) fn alive(&self) -> u64 {
        // The subtrahend is loaded first, so that the result is never negative.
        let ended = self.ended.load(Relaxed);
        self.spawned.load(Relaxed).saturating_sub(ended)
    }

    pub(super) fn spawned(&self) {
        self.spawned.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        metrics::gauge!("offload_processes", "pool" => self.pool.to_string()).increment(1);
    }

    pub(super) fn ended(&self) {
        self.ended.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        crate::panic::ignore_panic(|| {
            metrics::gauge!("offload_processes", "pool" => self.pool.to_string()).decrement(1)
        });
    }

    /// Records a process that is ready, after `delay`.
    pub(super) fn started(&self, pid: u32, delay: Duration) {
        self.started.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.counter("offload_process_starts_total").increment(1);
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::DEBUG,
            pool = &*self.pool,
            pid,
            start_seconds = delay.as_secs_f64(),
            "process started"
        );
        let _ = (pid, delay);
    }

    pub(super) fn start_failed(&self, error: &StartError) {
        self.start_failures.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.counter("offload_process_start_failures_total").increment(1);
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::ERROR, pool = &*self.pool, %error, "process could not be started");
        let _ = error;
    }

    pub(super) fn recycled(&self, pid: u32, reason: &'static str) {
        self.recycled.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        metrics::counter!("offload_process_recycled_total", "pool" => self.pool.to_string(), "reason" => reason)
            .increment(1);
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::DEBUG, pool = &*self.pool, pid, reason, "process recycled");
        let _ = (pid, reason);
    }

    /// Records that the process of a job was killed or has crashed.
    pub(super) fn killed(&self, pid: u32, job: u64, kind: &str, by: KilledBy) {
        self.killed[by.index()].fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.killed_counter(by).increment(1);
        #[cfg(feature = "tracing")]
        {
            let signal = if let KilledBy::Crash(signal) = by { Some(signal) } else { None };
            let by = by.as_str();
            tracing::event!(tracing::Level::WARN, pool = &*self.pool, pid, job, kind, by, signal, "process killed");
        }
        let _ = (pid, job, kind);
    }

    /// Records that the process of a job has exited. The status is not known if something else has
    /// reaped it.
    pub(super) fn exited(&self, pid: u32, job: u64, kind: &str, code: Option<i32>) {
        self.exited.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.counter("offload_process_exits_total").increment(1);
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::WARN, pool = &*self.pool, pid, job, kind, code, "process exited");
        let _ = (pid, job, kind, code);
    }

    /// Records that the process of a job has broken the protocol.
    pub(super) fn misbehaved(&self, pid: u32, job: u64, kind: &str) {
        self.protocol_errors.fetch_add(1, Relaxed);
        #[cfg(feature = "metrics")]
        self.counter("offload_process_protocol_errors_total").increment(1);
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::WARN, pool = &*self.pool, pid, job, kind, "process broke the protocol");
        let _ = (pid, job, kind);
    }

    pub(super) fn output_discarded(&self, bytes: u64) {
        if bytes > 0 {
            self.output_discarded.fetch_add(bytes, Relaxed);
        }
    }
}

impl KilledBy {
    /// Position of the reason in `Metrics::killed`.
    fn index(self) -> usize {
        match self {
            Self::Timeout => 0,
            Self::Memory => 1,
            Self::Cancelled => 2,
            Self::Crash(_) => 3,
        }
    }
}
