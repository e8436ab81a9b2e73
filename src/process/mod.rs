//! A pool of worker processes, for work that must be killed when it does not end.
//!
//! A thread cannot be killed: work that loops forever occupies its thread until the program ends,
//! and work that corrupts memory or allocates without end takes the program with it. A
//! [`ProcessPool`] runs jobs in processes, one at a time in each. On timeout, on cancellation, or
//! above a memory limit, the process is killed, and only its job fails.
//!
//! ```no_run
//! use std::time::Duration;
//! use serde::{Deserialize, Serialize};
//! use tower_offload::process::{self, Context, KilledBy, ProcessPool, RunError, Work};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Render(String);
//!
//! impl Work for Render {
//!     const KIND: &'static str = "render";
//!     type Output = String;
//!     type Error = String;
//!
//!     fn run(self, _: &Context) -> Result<String, String> {
//!         Ok(self.0.to_uppercase())
//!     }
//! }
//!
//! fn main() {
//!     process::init::<Render>(); // the first line; never returns in a worker process
//!     serve();
//! }
//!
//! #[tokio::main]
//! async fn serve() {
//!     let pool = ProcessPool::builder().max_memory(256 << 20).build().expect("processes");
//!     match pool.run(Render("page".to_owned())).timeout(Duration::from_secs(1)).await {
//!         Ok(page) => println!("{page}"),
//!         Err(RunError::Killed { by: KilledBy::Timeout }) => println!("the page takes too long"),
//!         Err(error) => println!("no page: {error}"),
//!     }
//! }
//! ```
//!
//! In a test, the pool needs [arguments](ProcessPoolBuilder::arguments) that select a test which
//! calls `init`. On Linux `/proc` must be mounted.
//!
//! # When to use it
//!
//! For code that may loop, leak or crash and cannot be fixed: parsers of files that users upload,
//! native libraries, scripts. For work that ends and checks [`cancelled`](crate::cancelled), a
//! [`ThreadPool`] is about six times cheaper: a call took 4 us instead of 25 us on two virtual
//! cores (`benches/README.md` in the repository). It is no sandbox: a job has every right of the
//! program, and one that wants to can leave its process group.
//!
//! To serve one port with several processes, see [`workers`]. The guide compares both with threads:
//! [When a thread is not enough](crate::guide::when_a_thread_is_not_enough).
//!
//! # What is promised
//!
//! * A job runs at most once. One whose process ends before it has begun gets another process.
//! * [Admission](crate::pool#bounds) is that of the other pools: a bounded queue, rejection at
//!   once, priorities, keys and [deadlines](crate::pool#deadlines). Work that was abandoned before
//!   it has started never starts.
//! * A job over a limit is asked to stop, and its process group is killed after the
//!   [grace period](ProcessPoolBuilder::grace). What work returns within the grace period is its
//!   result. The caller is answered when the process is gone, so the job no longer runs. A deadline
//!   answers it earlier, and so does a process that is not gone a second after it was killed.
//! * A spare process takes over at once, and its successor starts in the background.
//! * A panic is an error with its message and location, and does not cost the process.
//! * When the program ends in any way, its processes end: they see that the socket is closed, also
//!   while they work, and Linux kills them.
//!
//! Work reports [progress](Context::progress), which the caller [receives](Run::on_progress). With
//! feature `process` of `tower-offload-tasks`, durable jobs and tasks with a status run on a pool.
//!
//! # Memory
//!
//! [`max_memory`](ProcessPoolBuilder::max_memory) limits the resident size of each process, which
//! is sampled; [`ProcessPoolStats::memory_limit`] reports that. A control group (cgroup v2) would
//! be exact, but the pool creates none: the system enables the memory controller only below a group
//! that has no processes of its own, so the program would have to be moved first, which is up to
//! the service manager. To protect the machine as well, limit the whole service, with `MemoryMax=`
//! and `OOMPolicy=continue` of systemd for example: a process that the system kills fails its job
//! with [`KilledBy::Crash`]`(9)`.
//!
//! # Large inputs
//!
//! An input is copied to the process. If it is larger than
//! [`max_frame_size`](ProcessPoolBuilder::max_frame_size), or already in a file, pass the path. On
//! Linux, a file without a name has a path too while it is open:
//!
//! ```
//! use std::{fs::File, os::fd::AsRawFd, path::PathBuf};
//!
//! fn path_of(file: &File) -> PathBuf {
//!     PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
//! }
//! # let _ = path_of;
//! ```
//!
//! # Observability
//!
//! [`ProcessPoolStats`] has all counters. The jobs are the calls of a pool with the same name, with
//! its [metrics and events](crate::offload#observability). Feature `metrics` also records these,
//! with the label `pool`:
//!
//! | metric | kind | value |
//! |---|---|---|
//! | `offload_processes` | gauge | processes that are not reaped |
//! | `offload_process_starts_total` | counter | processes that became ready |
//! | `offload_process_start_failures_total` | counter | processes that could not be started |
//! | `offload_process_recycled_total` | counter | processes that were replaced; label `reason`: `max_jobs`, `max_age`, `growth`, or `protocol` for what an earlier job has left behind |
//! | `offload_process_killed_total` | counter | processes that were killed or crashed; label `by`: `timeout`, `memory`, `cancelled`, `crash` |
//! | `offload_process_exits_total` | counter | processes that exited while they ran a job |
//! | `offload_process_protocol_errors_total` | counter | processes that broke the protocol while they ran a job, and were killed |
//!
//! Feature `tracing` emits these events with the field `pool`:
//!
//! | event | level | fields |
//! |---|---|---|
//! | `process started` | debug | `pid`, `start_seconds` |
//! | `process could not be started` | error | `error` |
//! | `process recycled` | debug | `pid`, `reason` |
//! | `process killed` | warn | `pid`, `job`, `kind`, `by`, `signal` |
//! | `process exited` | warn | `pid`, `job`, `kind`, `code` |
//! | `process broke the protocol` | warn | `pid`, `job`, `kind` |
//! | `process output` | info | `pid`, `job`, `kind`, `stream`, `line` |
//!
//! `process output` is a line that a process wrote to stdout or stderr. At most 1 MiB is reported
//! for each job, and lines over 8 KiB are split.

#[cfg(not(unix))]
compile_error!("feature `process` of tower-offload requires Unix: do not enable it for Windows");

mod builder;
mod child;
mod depth;
mod driver;
mod error;
mod frame;
mod leader;
mod limits;
mod metrics;
mod os;
mod output;
mod progress;
mod roster;
mod run;
mod shared;
mod stats;
mod supervisor;
mod work;
mod worker;
pub mod workers;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{self, Poll},
    time::Duration,
};

use tower_service::Service;

pub use self::{
    builder::ProcessPoolBuilder,
    error::{DataError, KilledBy, ProcessPoolBuildError, RunError, StartError, WorkPanic},
    output::{OutputLine, OutputStream},
    run::Run,
    stats::{MemoryLimit, ProcessPoolStats},
    work::{Context, Registry, Work, Works},
    worker::{init, init_with},
};
use self::{
    child::JobControl,
    error::{BuildErrorKind, StartErrorKind},
    shared::Shared,
};
use crate::{
    ThreadPool,
    panic::ignore_panic,
    pool::{self, CallOptions, PermitKind, Pool, PoolShutdownReport},
    sync::lock,
};

/// Longest trace context that is passed to a process, in bytes. A `traceparent` has 55.
const MAX_TRACE_CONTEXT: usize = 1024;

/// Time that a shutdown waits for killed processes. Only one that waits for a device takes long.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// A pool that runs jobs in processes.
///
/// This type is a handle, and clones refer to the same pool. When the last handle is dropped, the
/// pool runs the queued jobs, and its processes end. The drop itself does not wait. See the
/// [module docs](self).
///
/// As a [`Service`], the pool takes [`Work`] as requests. It is always ready, and rejects a call if
/// the queue is full, like [`run`](Self::run).
#[derive(Clone)]
pub struct ProcessPool {
    threads: ThreadPool,
    closer: Arc<Closer>,
}

/// Closes the pool when its last handle and its last job are gone.
struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl ProcessPool {
    /// Returns a builder, with a process for each core.
    pub fn builder() -> ProcessPoolBuilder {
        ProcessPoolBuilder::new()
    }

    fn new(threads: ThreadPool, shared: Arc<Shared>) -> Self {
        Self { threads, closer: Arc::new(Closer(shared)) }
    }

    /// Waits until the first process is ready, or has failed to start.
    fn wait_until_ready(&self) -> Result<(), BuildErrorKind> {
        let shared = &self.closer.0;
        let silent = || StartError::new(StartErrorKind::Silent);
        shared.first_start().unwrap_or_else(|| Err(silent())).map_err(BuildErrorKind::Start)?;
        let first = lock(&shared.handles).first().map(|handle| handle.pid);
        let used = first.and_then(os::resident_memory);
        match shared.config.max_memory.zip(used) {
            Some((max, used)) if max < used => Err(BuildErrorKind::Configuration(
                format!("`max_memory` must be at least what a process without a job has, {used} bytes, and is {max}")
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    /// Returns `true` if the processes can run this work: its type is one of those that the program
    /// passes to [`init`].
    pub fn can_run<W: Work>(&self) -> bool {
        self.closer.0.knows(W::KIND) && !worker::has_other_type::<W>()
    }

    /// Runs a job in a process.
    ///
    /// The permit for the queue is acquired by this method and not at the first poll, so the future
    /// of a job that finds the queue full is ready at once.
    ///
    /// # Errors
    ///
    /// The future returns a [`RunError`]: [`Rejected`](RunError::Rejected) if the job was not
    /// started, [`Failed`](RunError::Failed) with the error of the work, and other variants if the
    /// work or its process ended in another way.
    ///
    /// # Panics
    ///
    /// The future resumes a panic of the work's `Serialize`, and of the `Deserialize` of its
    /// result. A panic of the work is an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the job: see [`Run`].
    pub fn run<W: Work>(&self, work: W) -> Run<W> {
        self.run_with(CallOptions::new(), work)
    }

    /// Like [`run`](Self::run), with a priority, a key or a deadline.
    ///
    /// # Errors
    ///
    /// Like [`run`](Self::run). At the deadline, the future returns
    /// [`CallError::DeadlineExceeded`](crate::CallError::DeadlineExceeded), and a job that runs is
    /// stopped like one at its [timeout](Run::timeout).
    pub fn run_with<W: Work>(&self, options: CallOptions, work: W) -> Run<W> {
        self.run_if(options, || Some(()), work)
    }

    /// Like [`run_with`](Self::run_with), but runs the job only if `begin` returns a guard. For job
    /// queues, whose job may have been cancelled, or taken over by another machine, meanwhile.
    ///
    /// `begin` is called on a thread of the pool, at most once, when a process is ready for the
    /// job. It may block, and the process waits for it. The guard is dropped when the process no
    /// longer runs the job, even if the future was dropped before.
    ///
    /// # Errors
    ///
    /// Like [`run_with`](Self::run_with). If `begin` returns `None` or panics, the future returns
    /// [`CallError::Closed`](crate::CallError::Closed).
    pub fn run_if<W: Work, G: 'static>(
        &self,
        options: CallOptions,
        begin: impl FnOnce() -> Option<G> + Send + 'static,
        work: W,
    ) -> Run<W> {
        self.start(options, PermitKind::Exempt, begin, work)
    }

    fn start<W: Work, G: 'static>(
        &self,
        options: CallOptions,
        kind: PermitKind,
        begin: impl FnOnce() -> Option<G> + Send + 'static,
        work: W,
    ) -> Run<W> {
        let control = Arc::new(JobControl::default());
        let call = pool::Run::new(self.threads.clone().into_shared(), options, kind, {
            let (closer, control) = (self.closer.clone(), control.clone());
            let mut trace = None;
            if let Some(get) = &closer.0.config.trace_context {
                ignore_panic(|| trace = get());
            }
            let trace = trace.filter(|trace| trace.len() <= MAX_TRACE_CONTEXT);
            move || run::run(&closer.0, control, trace.as_deref(), begin, work)
        });
        Run::new(call, control)
    }

    /// Returns the maximum number of jobs that run at the same time, each in a process of its own.
    pub fn processes(&self) -> usize {
        self.threads.max_threads().unwrap_or(usize::MAX)
    }

    /// Returns how long a new job is expected to wait for a process, for `Retry-After` of a
    /// rejected one.
    pub fn expected_wait(&self) -> Duration {
        self.threads.expected_wait()
    }

    /// Returns the counters and gauges of the pool.
    pub fn stats(&self) -> ProcessPoolStats {
        let shared = &self.closer.0;
        let (idle, busy, starting) = lock(&shared.roster).counts();
        let metrics = &shared.metrics;
        let [killed_by_timeout, killed_by_memory, killed_by_cancel, crashed] =
            [0, 1, 2, 3].map(|by| metrics.killed[by].load(Relaxed));
        ProcessPoolStats {
            jobs: self.threads.stats(),
            memory_limit: shared.config.max_memory.map_or(MemoryLimit::None, |_| MemoryLimit::ResidentSize),
            idle,
            busy,
            starting,
            alive: metrics.alive(),
            started: metrics.started.load(Relaxed),
            start_failures: metrics.start_failures.load(Relaxed),
            recycled: metrics.recycled.load(Relaxed),
            killed_by_timeout,
            killed_by_memory,
            killed_by_cancel,
            crashed,
            exited: metrics.exited.load(Relaxed),
            protocol_errors: metrics.protocol_errors.load(Relaxed),
            output_discarded: metrics.output_discarded.load(Relaxed),
        }
    }

    /// Rejects new jobs, runs the others up to `timeout`, kills those that are left, and reports
    /// them. No process of the pool is left when it returns, except one that the system cannot kill
    /// within 5 s, or whose callback for progress blocks for that long.
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early, the pool rejects new jobs and runs the others.
    pub async fn shutdown(&self, timeout: Duration) -> PoolShutdownReport {
        let report = self.threads.shutdown(timeout).await;
        self.closer.0.halt();
        let _ = tokio::time::timeout(REAP_TIMEOUT, self.closer.0.gone()).await;
        report
    }
}

impl<W: Work> Service<W> for ProcessPool {
    type Response = W::Output;
    type Error = RunError<W::Error>;
    type Future = Run<W>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, work: W) -> Run<W> {
        self.start(CallOptions::new(), PermitKind::Limited, || Some(()), work)
    }
}

impl fmt::Debug for ProcessPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPool")
            .field("name", &self.closer.0.config.name)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
