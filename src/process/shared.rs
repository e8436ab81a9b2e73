use std::{
    ffi::OsString,
    path::PathBuf,
    sync::{
        Arc, Condvar, OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    child::{Process, ProcessHandle, Wake},
    error::{KilledBy, StartError},
    frame::Fingerprint,
    metrics::Metrics,
    output::{self, OnOutput, OutputLine, OutputStream},
    roster::Roster,
};
use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// Returns the trace context of the caller.
pub(super) type TraceContext = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Settings of a pool. They do not change.
pub(super) struct Config {
    pub(super) name: Arc<str>,
    pub(super) program: PathBuf,
    /// `true` if it is the running program.
    pub(super) is_own_program: bool,
    pub(super) executable: Fingerprint,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) max_frame_size: usize,
    pub(super) max_memory: Option<u64>,
    pub(super) max_jobs: Option<u64>,
    pub(super) max_age: Option<Duration>,
    pub(super) grace: Duration,
    pub(super) start_timeout: Duration,
    pub(super) on_output: Option<OnOutput>,
    pub(super) trace_context: Option<TraceContext>,
}

/// What the handles of a pool, the drivers of jobs, and the supervisor share.
///
/// The locks are held one at a time. No user code runs under `roster`, `ended` and `handles`.
pub(super) struct Shared {
    pub(super) config: Config,
    /// The processes. Its condition variable is notified when one becomes idle or a start has
    /// failed.
    pub(super) roster: Mutex<Roster<Process>>,
    available: Condvar,
    /// Processes that the supervisor must end and reap.
    pub(super) ended: Mutex<Vec<Process>>,
    /// Every process that is not reaped.
    pub(super) handles: Mutex<Vec<Arc<ProcessHandle>>>,
    /// Wakes the supervisor.
    pub(super) wake: Wake,
    /// The kinds of work that the processes know, once the first one is ready.
    pub(super) kinds: OnceLock<Vec<String>>,
    /// The timeout of the pool's shutdown has passed: jobs are killed.
    is_halted: AtomicBool,
    /// No process is left, and none is started any longer.
    is_gone: AtomicBool,
    gone: Notify,
    next_job: AtomicU64,
    pub(super) metrics: Metrics,
}

/// Interval in which a job that waits for a process looks whether it is still wanted.
const WAIT_INTERVAL: Duration = Duration::from_millis(20);

/// Reason why a job got no process.
pub(super) enum NoProcess {
    Unwanted,
    Start(StartError),
}

impl Shared {
    pub(super) fn new(config: Config, target: usize, wake: Wake) -> Self {
        Self {
            metrics: Metrics::new(&config.name),
            config,
            roster: Mutex::new(Roster::new(target)),
            available: Condvar::new(),
            ended: Mutex::default(),
            handles: Mutex::default(),
            wake,
            kinds: OnceLock::new(),
            is_halted: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            gone: Notify::new(),
            next_job: AtomicU64::new(1),
        }
    }

    /// Returns `true` if the processes know work of this kind, or none has been ready yet.
    pub(super) fn knows(&self, kind: &str) -> bool {
        self.kinds.get().is_none_or(|kinds| kinds.iter().any(|known| known == kind))
    }

    /// Returns the number of a new job. Numbers begin with 1.
    pub(super) fn next_job(&self) -> u64 {
        self.next_job.fetch_add(1, Relaxed)
    }

    /// Takes an idle process that is alive. Waits while one is about to be ready, as long as the
    /// job is wanted.
    pub(super) fn acquire(&self, is_wanted: impl Fn() -> bool) -> Result<Process, NoProcess> {
        let mut roster = lock(&self.roster);
        let seen = roster.failed();
        loop {
            // First, so that a job that was abandoned while it waited does not start.
            if !is_wanted() {
                return Err(NoProcess::Unwanted);
            }
            if let Some(process) = roster.take() {
                drop(roster);
                if !process.has_ended() {
                    return Ok(process);
                }
                self.remove(process);
                roster = lock(&self.roster);
                continue;
            }
            if let Some(error) = roster.start_error(seen) {
                return Err(NoProcess::Start(error));
            }
            let waited = self.available.wait_timeout(roster, WAIT_INTERVAL);
            roster = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Waits until the first process is ready or has failed to start.
    pub(super) fn first_start(&self) -> Option<Result<(), StartError>> {
        let mut roster = lock(&self.roster);
        let limit = Instant::now().checked_add(self.config.start_timeout.saturating_mul(2));
        loop {
            // A process that is ready is idle or has been closed.
            if self.kinds.get().is_some() {
                return Some(Ok(()));
            }
            if let Some(error) = roster.last_error() {
                return Some(Err(error));
            }
            if limit.is_some_and(|limit| Instant::now() >= limit) {
                return None; // The supervisor has ended.
            }
            let waited = self.available.wait_timeout(roster, WAIT_INTERVAL);
            roster = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Makes a busy process idle.
    pub(super) fn release(&self, process: Process) {
        let closed = lock(&self.roster).put_back(process);
        if let Some(process) = closed {
            self.end(process);
        }
        self.available.notify_one();
        self.wake_if_closed();
    }

    /// Removes a busy process. The supervisor reaps it, if that is left to do, and starts another.
    pub(super) fn remove(&self, process: Process) {
        lock(&self.roster).remove_busy();
        self.end(process);
    }

    /// Kills a process that is not fit for a job, although none runs on it.
    pub(super) fn replace(&self, process: Process) {
        process.kill();
        self.recycled(&process.handle, "protocol");
        if process.jobs == 0 {
            lock(&self.roster).delay_start(Instant::now());
        }
        self.remove(process);
    }

    /// Leaves a process, which must not be in the roster, to the supervisor.
    fn end(&self, process: Process) {
        process.close();
        lock(&self.ended).push(process);
        self.wake.wake();
    }

    /// Wakes jobs that wait for a process.
    pub(super) fn notify_waiting(&self) {
        self.available.notify_all();
    }

    /// Starts no more processes, and ends those that are idle. Busy ones end after their job.
    pub(super) fn close(&self) {
        let idle = lock(&self.roster).close();
        for process in idle {
            self.end(process);
        }
        self.available.notify_all();
        self.wake.wake();
    }

    fn wake_if_closed(&self) {
        if lock(&self.roster).is_closed() {
            self.wake.wake();
        }
    }

    /// Closes the pool and kills the processes that run jobs.
    pub(super) fn halt(&self) {
        self.is_halted.store(true, SeqCst);
        self.close();
        let handles = lock(&self.handles).clone();
        handles.iter().for_each(|handle| handle.wake.wake());
    }

    pub(super) fn is_halted(&self) -> bool {
        self.is_halted.load(SeqCst)
    }

    /// Records that every process is reaped. Called by the supervisor when it ends.
    pub(super) fn on_gone(&self) {
        self.is_gone.store(true, SeqCst);
        // Wakers are user code.
        ignore_panic(|| self.gone.notify_waiters());
    }

    /// Waits until every process is reaped.
    pub(super) async fn gone(&self) {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if self.is_gone.load(SeqCst) {
                return;
            }
            gone.await;
        }
    }

    /// Reads what a process has written and reports its lines.
    pub(super) fn read_output(&self, handle: &ProcessHandle, streams: &[OutputStream]) {
        let mut output = lock(&handle.output);
        for stream in streams {
            let discarded = output.read(*stream, handle.stream(*stream), &mut |line| self.report(line));
            self.metrics.output_discarded(discarded);
        }
    }

    /// Attributes the output of a process from now on to a job, or to none. What it has written
    /// before is read and reported first.
    pub(super) fn set_output_job(&self, handle: &ProcessHandle, job: Option<(u64, &'static str)>) {
        self.read_output(handle, &[OutputStream::Stdout, OutputStream::Stderr]);
        lock(&handle.output).set_job(job, &mut |line| self.report(line));
    }

    /// Reports the last lines of a process that has ended, and forgets it.
    pub(super) fn forget(&self, handle: &Arc<ProcessHandle>) {
        self.read_output(handle, &[OutputStream::Stdout, OutputStream::Stderr]);
        lock(&handle.output).finish_lines(&mut |line| self.report(line));
        lock(&self.handles).retain(|other| !Arc::ptr_eq(other, handle));
        self.metrics.ended();
    }

    /// The callback and the subscriber are user code.
    fn report(&self, line: &OutputLine<'_>) {
        ignore_panic(|| output::report(&self.config.name, line, self.config.on_output.as_ref()));
    }

    pub(super) fn killed(&self, handle: &ProcessHandle, job: u64, kind: &str, by: KilledBy) {
        ignore_panic(|| self.metrics.killed(handle.pid, job, kind, by));
    }

    pub(super) fn exited(&self, handle: &ProcessHandle, job: u64, kind: &str, code: Option<i32>) {
        ignore_panic(|| self.metrics.exited(handle.pid, job, kind, code));
    }

    pub(super) fn misbehaved(&self, handle: &ProcessHandle, job: u64, kind: &str) {
        ignore_panic(|| self.metrics.misbehaved(handle.pid, job, kind));
    }

    pub(super) fn recycled(&self, handle: &ProcessHandle, reason: &'static str) {
        ignore_panic(|| self.metrics.recycled(handle.pid, reason));
    }

    /// Returns why an idle process must not run another job, if it must not. An old process is kept
    /// while its successor cannot be started.
    pub(super) fn recycle_reason(
        &self,
        process: &Process,
        memory: Option<u64>,
        can_start: bool,
    ) -> Option<&'static str> {
        let Config { max_jobs, max_memory, .. } = self.config;
        if max_jobs.is_some_and(|max| process.jobs >= max) {
            Some("max_jobs")
        } else if can_start && process.expires.is_some_and(|at| Instant::now() >= at) {
            Some("max_age")
        } else if max_memory.zip(memory).is_some_and(|(max, used)| used > max / 2) {
            // The next job would have less than half of its limit for itself.
            Some("growth")
        } else {
            None
        }
    }
}
