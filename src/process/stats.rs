use crate::pool::PoolStats;

/// Counters and gauges of a [`ProcessPool`](super::ProcessPool).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessPoolStats {
    /// Jobs, counted like the calls of every pool. `active` is the number of jobs that run, or wait
    /// for a process that starts.
    pub jobs: PoolStats,
    /// How the limit of the memory is enforced.
    pub memory_limit: MemoryLimit,
    /// Number of processes that are ready and have no job.
    pub idle: usize,
    /// Number of processes that run a job.
    pub busy: usize,
    /// Number of processes that are not ready yet.
    pub starting: usize,
    /// Number of processes that are not reaped: the ones above, and those that are about to end.
    pub alive: u64,
    /// Number of processes that became ready.
    pub started: u64,
    /// Number of processes that could not be started.
    pub start_failures: u64,
    /// Number of processes that were replaced after `max_jobs`, `max_age`, or growth, or because an
    /// earlier job has closed their socket or written to it.
    pub recycled: u64,
    /// Number of processes that were killed because of [`KilledBy::Timeout`](super::KilledBy).
    pub killed_by_timeout: u64,
    /// Number of processes that were killed because of [`KilledBy::Memory`](super::KilledBy).
    pub killed_by_memory: u64,
    /// Number of processes that were killed because of [`KilledBy::Cancelled`](super::KilledBy).
    pub killed_by_cancel: u64,
    /// Number of processes that crashed while they ran a job.
    pub crashed: u64,
    /// Number of processes that exited while they ran a job: see
    /// [`RunError::Exited`](super::RunError::Exited).
    pub exited: u64,
    /// Number of processes that were killed because they broke the protocol while they ran a job:
    /// see [`RunError::Protocol`](super::RunError::Protocol).
    pub protocol_errors: u64,
    /// Bytes that processes have written to stdout and stderr beyond the 1 MiB that is reported for
    /// each job.
    pub output_discarded: u64,
}

/// How a pool enforces [`max_memory`](super::ProcessPoolBuilder::max_memory).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryLimit {
    /// There is no limit.
    #[default]
    None,
    /// The resident size of a process and its descendants is sampled every 20 ms, so a job can
    /// exceed the limit by what it allocates between two samples.
    ///
    /// A cgroup would be exact. The pool does not create one: see [the module docs](super#memory).
    ResidentSize,
}
