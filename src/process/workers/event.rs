//! Reports what happens to the workers: to the callback and in the report of the supervisor; with
//! feature `metrics` also to the installed recorder; with feature `tracing` as events.

use std::{fmt, process::ExitStatus, sync::Arc, time::Duration};

use crate::{panic::ignore_panic, process::leader::Exit};

/// Something that has happened to a worker, for [`on_event`](super::SupervisorBuilder::on_event).
/// Its `Display` is a line for a log, such as `worker 4711 ready`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// A worker is ready.
    Ready {
        /// Process id.
        pid: u32,
        /// Time since its start.
        after: Duration,
    },
    /// A worker was not ready when it ended, or could not be started.
    StartFailed {
        /// How it ended.
        reason: String,
        /// Time until the next attempt. `None` if the supervisor ends, because this was one of its
        /// first workers.
        retry_in: Option<Duration>,
    },
    /// A worker was asked to drain.
    Draining {
        /// Process id.
        pid: u32,
    },
    /// A worker was killed by the supervisor.
    Killed {
        /// Process id.
        pid: u32,
        /// The reason.
        reason: KillReason,
    },
    /// A worker that was ready ended without having been asked.
    Died {
        /// Process id.
        pid: u32,
        /// Exit status. `None` if something other than the supervisor has reaped the worker, such
        /// as a thread of the program that waits for all of its children.
        status: Option<ExitStatus>,
        /// Time until another worker is started. `None` if the other worker of its slot continues:
        /// during a reload, the one that it should have replaced, or the one that replaces it.
        restart_in: Option<Duration>,
    },
    /// A worker that was asked to drain, or was killed, has ended.
    Ended {
        /// Process id.
        pid: u32,
        /// Exit status, if it is known, as in [`Died`](Self::Died).
        status: Option<ExitStatus>,
    },
    /// A reload was requested.
    Reloading,
    /// Every worker was replaced. Old ones may still drain.
    Reloaded,
    /// A new worker was not ready when it ended, or died within a second after it was ready. The
    /// old ones that are left continue.
    ReloadFailed {
        /// How it ended.
        reason: String,
    },
}

/// Reason why a supervisor has killed a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KillReason {
    /// It was not ready within [`start_timeout`](super::SupervisorBuilder::start_timeout).
    StartTimeout,
    /// It was still running when [`drain_timeout`](super::SupervisorBuilder::drain_timeout) and
    /// then [`kill_timeout`](super::SupervisorBuilder::kill_timeout) had passed.
    DrainTimeout,
    /// The supervisor was asked a second time to end, or another one of its first workers has
    /// failed before this one was ready.
    Halted,
}

impl KillReason {
    /// Returns a short machine-readable name: `"start_timeout"`, `"drain_timeout"` or `"halted"`.
    /// Metrics and events use it as `reason`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::StartTimeout => "start_timeout",
            Self::DrainTimeout => "drain_timeout",
            Self::Halted => "halted",
        }
    }
}

impl fmt::Display for WorkerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { pid, .. } => write!(f, "worker {pid} ready"),
            Self::StartFailed { reason, retry_in: Some(delay) } => write!(f, "{reason}; next attempt in {delay:?}"),
            Self::StartFailed { reason, retry_in: None } => f.write_str(reason),
            Self::Draining { pid } => write!(f, "worker {pid} drains"),
            Self::Killed { pid, reason } => write!(f, "worker {pid} was killed ({})", reason.as_str()),
            Self::Died { pid, status, restart_in: Some(delay) } => {
                write!(f, "worker {pid} died ({}); another one starts in {delay:?}", Exit(*status))
            }
            Self::Died { pid, status, restart_in: None } => {
                write!(f, "worker {pid} died ({}); the other worker of its slot continues", Exit(*status))
            }
            Self::Ended { pid, status } => write!(f, "worker {pid} ended ({})", Exit(*status)),
            Self::Reloading => f.write_str("reloading the workers"),
            Self::Reloaded => f.write_str("workers reloaded"),
            Self::ReloadFailed { reason } => write!(f, "reload failed, the old workers continue: {reason}"),
        }
    }
}

/// Counters of a supervisor that has ended. Returned by [`run`](super::SupervisorBuilder::run).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SupervisorReport {
    /// Number of workers that became ready.
    pub started: u64,
    /// Number of workers that were not ready when they ended, or could not be started.
    pub start_failures: u64,
    /// Number of workers that were ready and ended without having been asked.
    pub died: u64,
    /// Number of workers that were killed by the supervisor.
    pub killed: u64,
    /// Number of reloads that have replaced every worker.
    pub reloads: u64,
    /// Number of reloads that have failed.
    pub failed_reloads: u64,
}

/// Formats the report, for example as `workers started: 8, died: 1, killed: 0; reloads: 1`.
impl fmt::Display for SupervisorReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, died, killed, reloads, .. } = self;
        write!(f, "workers started: {started}, died: {died}, killed: {killed}; reloads: {reloads}")
    }
}

/// Callback for events.
pub(super) type OnEvent = Arc<dyn Fn(&WorkerEvent) + Send + Sync>;

/// Counts and reports events.
pub(super) struct Reporter {
    on_event: Option<OnEvent>,
    pub(super) report: SupervisorReport,
}

impl Reporter {
    pub(super) fn new(on_event: Option<OnEvent>) -> Self {
        #[cfg(feature = "metrics")]
        ignore_panic(register);
        Self { on_event, report: SupervisorReport::default() }
    }

    pub(super) fn report(&mut self, event: WorkerEvent) {
        let report = &mut self.report;
        match &event {
            WorkerEvent::Ready { .. } => report.started += 1,
            WorkerEvent::StartFailed { .. } => report.start_failures += 1,
            WorkerEvent::Killed { .. } => report.killed += 1,
            WorkerEvent::Died { .. } => report.died += 1,
            WorkerEvent::Reloaded => report.reloads += 1,
            WorkerEvent::ReloadFailed { .. } => report.failed_reloads += 1,
            WorkerEvent::Draining { .. } | WorkerEvent::Ended { .. } | WorkerEvent::Reloading => {}
        }
        // The recorder, the subscriber and the callback are user code.
        #[cfg(feature = "metrics")]
        ignore_panic(|| record(&event));
        #[cfg(feature = "tracing")]
        ignore_panic(|| trace(&event));
        if let Some(on_event) = &self.on_event {
            ignore_panic(|| on_event(&event));
        }
    }

    /// Reports the number of workers that are ready.
    pub(super) fn ready(&self, workers: usize) {
        #[cfg(feature = "metrics")]
        ignore_panic(|| metrics::gauge!("offload_workers").set(workers as f64));
        let _ = workers;
    }
}

/// Registers the counters, so that they are 0 before their first event.
#[cfg(feature = "metrics")]
fn register() {
    use metrics::{Unit::Count, counter, describe_counter, describe_gauge};
    describe_gauge!("offload_workers", Count, "Workers that are ready.");
    describe_counter!("offload_worker_starts_total", Count, "Workers that became ready.");
    describe_counter!("offload_worker_start_failures_total", Count, "Workers that could not be started.");
    describe_counter!("offload_worker_deaths_total", Count, "Workers that ended without having been asked.");
    describe_counter!("offload_worker_kills_total", Count, "Workers that the supervisor has killed, by reason.");
    describe_counter!("offload_worker_reloads_total", Count, "Reloads of the workers, by result.");
    for name in ["offload_worker_starts_total", "offload_worker_start_failures_total", "offload_worker_deaths_total"] {
        counter!(name).increment(0);
    }
}

#[cfg(feature = "metrics")]
fn record(event: &WorkerEvent) {
    use metrics::counter;
    match event {
        WorkerEvent::Ready { .. } => counter!("offload_worker_starts_total").increment(1),
        WorkerEvent::StartFailed { .. } => counter!("offload_worker_start_failures_total").increment(1),
        WorkerEvent::Died { .. } => counter!("offload_worker_deaths_total").increment(1),
        WorkerEvent::Killed { reason, .. } => {
            counter!("offload_worker_kills_total", "reason" => reason.as_str()).increment(1);
        }
        WorkerEvent::Reloaded => counter!("offload_worker_reloads_total", "result" => "replaced").increment(1),
        WorkerEvent::ReloadFailed { .. } => counter!("offload_worker_reloads_total", "result" => "failed").increment(1),
        WorkerEvent::Draining { .. } | WorkerEvent::Ended { .. } | WorkerEvent::Reloading => {}
    }
}

#[cfg(feature = "tracing")]
fn trace(event: &WorkerEvent) {
    use tracing::{Level, event};
    match event {
        WorkerEvent::Ready { pid, after } => {
            event!(Level::INFO, pid, start_seconds = after.as_secs_f64(), "worker ready");
        }
        WorkerEvent::StartFailed { reason, retry_in } => {
            let retry_seconds = retry_in.map(|delay| delay.as_secs_f64());
            event!(Level::ERROR, reason, retry_seconds, "worker could not be started");
        }
        WorkerEvent::Draining { pid } => event!(Level::INFO, pid, "worker drains"),
        WorkerEvent::Killed { pid, reason } => event!(Level::WARN, pid, reason = reason.as_str(), "worker killed"),
        WorkerEvent::Died { pid, status, restart_in } => {
            let (status, restart_seconds) = (Exit(*status), restart_in.map(|delay| delay.as_secs_f64()));
            event!(Level::ERROR, pid, %status, restart_seconds, "worker died");
        }
        WorkerEvent::Ended { pid, status } => event!(Level::INFO, pid, status = %Exit(*status), "worker ended"),
        WorkerEvent::Reloading => event!(Level::INFO, "reloading the workers"),
        WorkerEvent::Reloaded => event!(Level::INFO, "workers reloaded"),
        WorkerEvent::ReloadFailed { reason } => event!(Level::ERROR, reason, "reload failed"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// Returns the texts in `source` between `"` or, in tables, backticks that look like names of
    /// metrics.
    fn metrics(source: &str, quote: char) -> BTreeSet<&str> {
        source.split(quote).filter(|text| text.starts_with("offload_worker") && !text.contains(' ')).collect()
    }

    #[test]
    fn metrics_and_events_are_documented() {
        let (source, docs) = (include_str!("event.rs"), include_str!("mod.rs"));
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        assert_eq!(metrics(source, '"'), metrics(docs, '`'));
        let events = source.split("event!(").skip(1).filter_map(|call| call.split(");").next()?.split('"').nth_back(1));
        let events: Vec<_> = events.collect();
        assert_eq!(events.len(), 9);
        assert!(events.iter().all(|event| docs.contains(&format!("`{event}`"))), "{events:?}");
    }
}
