use std::{ffi::OsString, fmt, path::PathBuf, sync::Arc, thread, time::Duration};

use super::{
    ProcessPool,
    child::Wake,
    error::{BuildErrorKind, ProcessPoolBuildError, StartError, StartErrorKind},
    frame::Fingerprint,
    os,
    output::{OnOutput, OutputLine},
    shared::{Config, Shared, TraceContext},
    supervisor, worker,
};
use crate::{ThreadPool, pool::QueuePolicy};

/// Longest payload that the length of a frame can express, with its header.
const MAX_FRAME_SIZE: usize = 1 << 30;

/// Configures a [`ProcessPool`]. Created by [`ProcessPool::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct ProcessPoolBuilder {
    name: String,
    processes: Option<usize>,
    spares: usize,
    queue_capacity: usize,
    queue_policy: QueuePolicy,
    max_memory: Option<u64>,
    max_jobs: Option<u64>,
    max_age: Option<Duration>,
    max_frame_size: usize,
    grace: Duration,
    start_timeout: Duration,
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    on_output: Option<OnOutput>,
    trace_context: Option<TraceContext>,
}

impl ProcessPoolBuilder {
    pub(super) fn new() -> Self {
        Self {
            name: "process".to_owned(),
            processes: None,
            spares: 1,
            queue_capacity: 1024,
            queue_policy: QueuePolicy::default(),
            max_memory: None,
            max_jobs: None,
            max_age: None,
            max_frame_size: 16 * 1024 * 1024,
            grace: Duration::from_millis(500),
            start_timeout: Duration::from_secs(10),
            program: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            on_output: None,
            trace_context: None,
        }
    }

    /// Sets the name of the pool in metrics and events, and of its threads. Default: `process`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the number of jobs that run at the same time, each in a process of its own; at least 1.
    ///
    /// Default: the available parallelism.
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Some(processes);
        self
    }

    /// Sets the number of processes that are kept ready beyond those that run jobs, so that a
    /// process that was killed or recycled is replaced at once.
    ///
    /// Default: 1, which replaces one process at a time. With 0, the next job waits until a process
    /// has started.
    pub fn spares(mut self, processes: usize) -> Self {
        self.spares = processes;
        self
    }

    /// Sets the maximum number of jobs that wait to be started, at least 1. Default: 1024.
    pub fn queue_capacity(mut self, jobs: usize) -> Self {
        self.queue_capacity = jobs;
        self
    }

    /// Sets what happens to jobs during an overload. Default: [`QueuePolicy::AcceptBursts`], which
    /// concerns only jobs of the pool as a [`Service`](tower_service::Service).
    pub fn queue_policy(mut self, policy: QueuePolicy) -> Self {
        self.queue_policy = policy;
        self
    }

    /// Limits the resident memory of a process and its descendants, in bytes, while it runs a job.
    ///
    /// The memory is sampled every 20 ms, see [the module docs](super#memory). A job that exceeds
    /// the limit is asked to stop, and killed after the [grace period](Self::grace); at twice the
    /// limit it is killed at once. A process that has kept more than half of the limit after a job
    /// is recycled. Shared memory counts for each process that uses it, and descendants that have
    /// outlived their parent do not count.
    ///
    /// Default: no limit. Requires Linux.
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Recycles a process after this number of jobs, at least 1. Default: never.
    pub fn max_jobs(mut self, jobs: u64) -> Self {
        self.max_jobs = Some(jobs);
        self
    }

    /// Recycles a process that is older than a random 90 % to 100 % of this once it has no job.
    /// Idle processes are recycled one at a time, and none while the successor of another one
    /// cannot be started, so that the pool keeps its capacity. Longer than zero. Default: never.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Limits the encoded input and the encoded result of a job, in bytes: from 1 KiB to 1 GiB. A
    /// job with more fails with [`RunError::InvalidData`](super::RunError::InvalidData).
    ///
    /// Default: 16 MiB. The pool and a process hold about two copies of each.
    pub fn max_frame_size(mut self, bytes: usize) -> Self {
        self.max_frame_size = bytes;
        self
    }

    /// Sets the time between asking a job to stop and killing its process. With zero, jobs are not
    /// asked.
    ///
    /// Default: 500 ms, enough to notice
    /// [`Context::is_cancelled`](super::Context::is_cancelled) and to remove a temporary file.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets the time that a process has to become ready, with the `setup` of
    /// [`init_with`](super::init_with). Default: 10 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Adds environment variables of the processes. They inherit those of this process.
    pub fn environment<K, V>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        self.environment.extend(variables.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Sets the program that the processes run, which must call [`init`](super::init).
    ///
    /// Default: the running program. On Linux that is the same file even if it was replaced by
    /// another version.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Adds arguments of the processes. Default: none.
    ///
    /// In a test, whose `main` belongs to the test harness, they select a test that calls
    /// [`init`](super::init), by its full path, such as `tests::process_worker` in a `mod tests`:
    ///
    /// ```no_run
    /// # use tower_offload::process::ProcessPool;
    /// #[test]
    /// fn process_worker() {
    ///     tower_offload::process::init::<()>(); // returns at once unless a pool has started it
    /// }
    ///
    /// let builder = ProcessPool::builder().arguments(["process_worker", "--exact", "--nocapture"]);
    /// # let _ = builder;
    /// ```
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a callback for the lines that processes write to stdout and stderr, in addition to the
    /// events of feature `tracing`. Without both, their output is discarded.
    ///
    /// It runs on the threads of the pool and must not block.
    pub fn on_output(mut self, callback: impl Fn(&OutputLine<'_>) + Send + Sync + 'static) -> Self {
        self.on_output = Some(Arc::new(callback));
        self
    }

    /// Sets a function that returns the trace context of the caller, such as a
    /// [`traceparent`](https://www.w3.org/TR/trace-context/#traceparent-header). It is called when
    /// a job is submitted, and work finds the result in
    /// [`Context::trace_context`](super::Context::trace_context), with which it can continue the
    /// trace in its process. One of more than 1 KiB is dropped. If the function panics, the job
    /// runs without one. Default: none.
    pub fn trace_context(mut self, get: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.trace_context = Some(Arc::new(get));
        self
    }

    /// Starts the threads of the pool and its processes, and waits until the first process is ready
    /// or has failed. It takes as long as the program takes to reach `init`: usually milliseconds.
    ///
    /// If SIGCHLD is ignored, which a program may inherit, it gets a handler without effect: the
    /// system discards exit statuses while it is ignored (Linux).
    ///
    /// # Errors
    ///
    /// Returns an error if a value is invalid, if the program has not called
    /// [`init`](super::init), or if threads or processes cannot be started. It starts no process if
    /// it knows that without.
    pub fn build(self) -> Result<ProcessPool, ProcessPoolBuildError> {
        let processes = self.processes.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        self.validate(processes)
            .map_err(|message| ProcessPoolBuildError(BuildErrorKind::Configuration(message.into())))?;
        worker::report_not_initialized();
        if self.program.is_none() && self.arguments.is_empty() && !worker::is_initialized() {
            return Err(start_error(StartErrorKind::NotInitialized));
        }
        let spawn = |error| start_error(StartErrorKind::Spawn(error));
        os::keep_exit_statuses().map_err(spawn)?;
        let is_own_program = self.program.is_none();
        let program = self.program.map_or_else(os::running_executable, Ok).map_err(spawn)?;
        let config = Config {
            name: self.name.as_str().into(),
            executable: Fingerprint::of(&program)
                .map_err(|error| start_error(StartErrorKind::Executable(program.clone(), error)))?,
            program,
            is_own_program,
            arguments: self.arguments,
            environment: self.environment,
            max_frame_size: self.max_frame_size,
            max_memory: self.max_memory,
            max_jobs: self.max_jobs,
            max_age: self.max_age,
            grace: self.grace,
            start_timeout: self.start_timeout,
            on_output: self.on_output,
            trace_context: self.trace_context,
        };
        let threads = ThreadPool::builder()
            .name(self.name)
            .threads(processes)
            .queue_capacity(self.queue_capacity)
            .queue_policy(self.queue_policy)
            .build()
            .map_err(|error| {
                ProcessPoolBuildError(if error.is_configuration() {
                    BuildErrorKind::Configuration(error.to_string().into())
                } else {
                    BuildErrorKind::Threads(error.into())
                })
            })?;
        let shared = Arc::new(Shared::new(config, processes.saturating_add(self.spares), Wake::new().map_err(spawn)?));
        let supervisor = thread::Builder::new().name("offload-process".to_owned());
        supervisor
            .spawn({
                let shared = shared.clone();
                move || supervisor::run(&shared)
            })
            .map_err(|error| ProcessPoolBuildError(BuildErrorKind::Threads(error.into())))?;
        // Closes itself if the first process does not start.
        let pool = ProcessPool::new(threads, shared);
        pool.wait_until_ready().map_err(ProcessPoolBuildError)?;
        Ok(pool)
    }

    fn validate(&self, processes: usize) -> Result<(), &'static str> {
        if processes == 0 {
            Err("a pool with 0 processes runs no job: give `processes` at least 1")
        } else if processes.saturating_add(self.spares) > 10_000 {
            Err("`processes` and `spares` must not exceed 10000 together")
        } else if self.max_jobs == Some(0) {
            Err("`max_jobs` must be at least 1")
        } else if self.max_age == Some(Duration::ZERO) {
            Err("`max_age` must not be zero: give each job a process of its own with `max_jobs(1)`")
        } else if self.start_timeout.is_zero() {
            Err("`start_timeout` must not be zero")
        } else if self.max_memory == Some(0) {
            Err("`max_memory` must be at least 1")
        } else if self.max_memory.is_some() && !cfg!(target_os = "linux") {
            Err("`max_memory` requires Linux")
        } else if !(1024..=MAX_FRAME_SIZE).contains(&self.max_frame_size) {
            Err("`max_frame_size` must be from 1 KiB to 1 GiB")
        } else {
            Ok(())
        }
    }
}

fn start_error(kind: StartErrorKind) -> ProcessPoolBuildError {
    ProcessPoolBuildError(BuildErrorKind::Start(StartError::new(kind)))
}

impl fmt::Debug for ProcessPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPoolBuilder")
            .field("name", &self.name)
            .field("processes", &self.processes)
            .field("spares", &self.spares)
            .field("max_memory", &self.max_memory)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}
