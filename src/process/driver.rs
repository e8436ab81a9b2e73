//! Runs one job on a process. The driver is a call on a thread of the pool, which it occupies for
//! as long as the job occupies its process.

use std::{os::unix::process::ExitStatusExt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    child::{JobControl, Process},
    error::{DataError, KilledBy, RunError, WorkPanic},
    frame::{self, Outcome, Progress, Reply, Request},
    leader::Exit,
    limits::{Action, Limits, Observation},
    os::{self, PollSet},
    shared::{NoProcess, Shared},
};
use crate::{CallError, panic::ignore_panic, pool::Deadline, sync::lock};

/// Interval in which the memory of a process is sampled while it runs a job.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Time to wait for a process that was killed. One that waits for a device may take longer; the
/// supervisor reaps it then.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time to wait for the end of a process that has closed its socket.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
/// Processes that a job is given, if they end before they have started it.
const MAX_ATTEMPTS: usize = 3;
/// Processes that are replaced before they are given a job, because they are not fit for one.
const MAX_REPLACED: usize = 16;
/// Reads of what a process has written between two jobs. One that has written more is replaced.
const MAX_LATE_READS: usize = 64;
/// Reads of what is left in the socket of a process that has ended, far more than it holds.
const MAX_LAST_READS: usize = 1024;

/// A job, whose input and error are encoded.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) kind: &'static str,
    pub(super) control: Arc<JobControl>,
    /// The timeout in `request`.
    pub(super) timeout: Option<Duration>,
    /// Frame with the input.
    pub(super) request: Vec<u8>,
}

/// The encoded result of a job.
pub(super) type JobResult = Result<Vec<u8>, RunError<Vec<u8>>>;

/// Runs a job to its end. Asks `begins` whether it begins once there is a process for it, before
/// each attempt to run it.
pub(super) fn run(shared: &Shared, job: &Job, begins: &mut dyn FnMut() -> bool) -> JobResult {
    let (mut attempts, mut replaced) = (0, 0);
    loop {
        let is_wanted = || !job.control.is_cancelled() && !shared.is_halted() && !Deadline::current().has_passed();
        let mut process = shared.acquire(is_wanted).map_err(|error| match error {
            NoProcess::Start(error) => RunError::NoProcess(error),
            NoProcess::Unwanted => RunError::Rejected(CallError::Closed),
        })?;
        if !is_ready(&mut process) {
            // An earlier job is to blame, so this one is given another process, and does not fail.
            shared.replace(process);
            replaced += 1;
            if replaced < MAX_REPLACED {
                continue;
            }
            return Err(RunError::Protocol);
        }
        if !shared.knows(job.kind) {
            shared.release(process);
            return Err(RunError::UnknownKind(job.kind));
        }
        // Again, because `begins` may take long.
        if !begins() || !is_wanted() {
            shared.release(process);
            return Err(RunError::Rejected(CallError::Closed));
        }
        attempts += 1;
        match Exchange::begin(shared, job, &process).finish(process) {
            End::Result(result) => return result,
            // The code of the job has not run, so another process may run it.
            End::NotStarted(_) if attempts < MAX_ATTEMPTS => {}
            End::NotStarted(error) => return Err(error),
        }
    }
}

/// Discards what an idle process has reported, such as a panic of a thread that a job has left
/// behind. Returns `false` if it has broken the protocol or closed its socket since its last job,
/// for which the next job must not fail.
fn is_ready(process: &mut Process) -> bool {
    for _ in 0..MAX_LATE_READS {
        loop {
            match process.reader.next() {
                Ok(Some(reply)) if matches!(frame::decode(reply), Ok((Reply::Panicking { .. }, _))) => {}
                Ok(None) => break,
                _ => return false,
            }
        }
        match process.read() {
            Progress::Read => {}
            Progress::Blocked => return process.reader.is_empty(),
            Progress::Closed => return false,
        }
    }
    false
}

/// How a process ended a job.
enum End {
    Result(JobResult),
    /// The process has ended before it has reported that it starts the job.
    NotStarted(RunError<Vec<u8>>),
}

/// The state of a job while a process runs it. The only user code in here is the callback for
/// progress, whose panic is contained, so nothing in here panics.
struct Exchange<'a> {
    shared: &'a Shared,
    job: &'a Job,
    limits: Limits,
    started: Instant,
    /// The timeout that the process knows.
    sent_timeout: Option<Duration>,
    /// When the memory is sampled next. `None` if it has no limit.
    next_sample: Option<Instant>,
    has_started: bool,
    /// The last panic that the process has reported.
    panic: Option<WorkPanic>,
    /// The latest progress that no callback has got.
    progress: Option<(f64, String)>,
}

impl<'a> Exchange<'a> {
    fn begin(shared: &'a Shared, job: &'a Job, process: &Process) -> Self {
        let now = Instant::now();
        let config = &shared.config;
        shared.set_output_job(&process.handle, Some((job.id, job.kind)));
        process.handle.wake.clear();
        // A timeout counts from here. The deadline has counted while the job waited.
        if let Some(remaining) = Deadline::current().remaining() {
            job.control.set_timeout(remaining);
        }
        job.control.set_process(Some(process.handle.clone()));
        Self {
            shared,
            job,
            limits: Limits::new(now, config.grace, config.max_memory),
            started: now,
            sent_timeout: job.timeout,
            // The memory of an idle process was sampled after its last job.
            next_sample: config.max_memory.and_then(|_| now.checked_add(SAMPLE_INTERVAL)),
            has_started: false,
            panic: None,
            progress: None,
        }
    }

    fn finish(mut self, mut process: Process) -> End {
        // Before the request, so that the work never sees the timeout that the request contains.
        self.send_timeout(&mut process);
        process.outbox.push(&self.job.request);
        let ended = self.drive(&mut process);
        self.job.control.set_process(None);
        process.jobs += 1;
        self.shared.set_output_job(&process.handle, None);
        match ended {
            Ended::Done(result) => {
                self.recycle_or_release(process);
                End::Result(result)
            }
            Ended::Killed(by) => {
                process.kill();
                process.reap(KILL_TIMEOUT);
                self.shared.killed(&process.handle, self.job.id, self.job.kind, by);
                self.shared.remove(process);
                End::Result(Err(RunError::Killed { by }))
            }
            Ended::Died(exit) => {
                let end = self.judge(&process, exit);
                self.shared.remove(process);
                end
            }
            Ended::Misbehaved => {
                process.kill();
                process.reap(KILL_TIMEOUT);
                self.shared.misbehaved(&process.handle, self.job.id, self.job.kind);
                self.shared.remove(process);
                End::Result(Err(RunError::Protocol))
            }
        }
    }

    fn recycle_or_release(&self, mut process: Process) {
        process.reader.shrink();
        let memory = self.shared.config.max_memory.and_then(|_| os::resident_memory(process.handle.pid));
        let can_start = lock(&self.shared.roster).can_start();
        match self.shared.recycle_reason(&process, memory, can_start) {
            Some(reason) => {
                self.shared.recycled(&process.handle, reason);
                self.shared.remove(process);
            }
            None => self.shared.release(process),
        }
    }

    /// Decides how a job ends whose process has ended by itself.
    fn judge(&mut self, process: &Process, exit: Exit) -> End {
        let signal = exit.0.and_then(|status| status.signal());
        let error = match (signal, self.panic.take()) {
            // A program that aborts on panics.
            (Some(signal), Some(panic)) if signal == rustix::process::Signal::ABORT.as_raw() => {
                RunError::Panicked(panic)
            }
            (Some(signal), _) => RunError::Killed { by: KilledBy::Crash(signal) },
            (None, _) => RunError::Exited { code: exit.0.and_then(|status| status.code()) },
        };
        if !self.has_started {
            return End::NotStarted(error);
        }
        match error {
            RunError::Killed { by } => self.shared.killed(&process.handle, self.job.id, self.job.kind, by),
            RunError::Exited { code } => self.shared.exited(&process.handle, self.job.id, self.job.kind, code),
            _ => {}
        }
        End::Result(Err(error))
    }

    /// Passes frames and enforces limits until the job or the process has ended.
    fn drive(&mut self, process: &mut Process) -> Ended {
        loop {
            // An error means that the process has ended, which the read below finds out.
            let _ = process.flush();
            let progress = process.read();
            match self.handle_replies(process) {
                Ok(Some(result)) => return Ended::Done(result),
                Ok(None) => {}
                Err(Misbehaved) => return Ended::Misbehaved,
            }
            if progress == Progress::Closed {
                return process.reap(CLOSE_TIMEOUT).map_or(Ended::Misbehaved, Ended::Died);
            }
            // A process that was forked from this one may keep the socket open.
            if process.has_ended() {
                if let Some(exit) = process.try_reap() {
                    return self.read_rest(process, exit);
                }
            }
            self.send_timeout(process);
            match self.observe(process.handle.pid) {
                Action::None => {}
                Action::Ask => process.outbox.push(&frame::encode(&Request::Cancel { job: self.job.id })),
                Action::Kill(by) => return Ended::Killed(by),
            }
            // After a read there may be more to read. The limits are enforced in between: a process
            // can write without end.
            if progress == Progress::Blocked {
                self.wait(process);
            }
        }
    }

    /// Sends a timeout that was set, or shortened, after the request was encoded.
    fn send_timeout(&mut self, process: &mut Process) {
        let timeout = self.job.control.timeout();
        if let Some(timeout) = timeout.filter(|_| timeout != self.sent_timeout) {
            let remaining = timeout.saturating_sub(self.started.elapsed());
            process.outbox.push(&frame::encode(&Request::Timeout { job: self.job.id, remaining }));
        }
        self.sent_timeout = timeout;
    }

    /// Reads what a process has written before it ended.
    fn read_rest(&mut self, process: &mut Process, exit: Exit) -> Ended {
        // Bounded, because a fork that has left the process group may write without end.
        for _ in 0..MAX_LAST_READS {
            if process.read() != Progress::Read {
                break;
            }
            match self.handle_replies(process) {
                Ok(Some(result)) => return Ended::Done(result),
                Ok(None) => {}
                Err(Misbehaved) => break,
            }
        }
        Ended::Died(exit)
    }

    fn observe(&mut self, pid: u32) -> Action {
        let now = Instant::now();
        let mut memory = None;
        if self.next_sample.is_some_and(|at| now >= at) {
            memory = os::resident_memory(pid);
            self.next_sample = now.checked_add(SAMPLE_INTERVAL);
        }
        self.limits.observe(Observation {
            now,
            timeout: self.job.control.timeout(),
            is_cancelled: self.job.control.is_cancelled(),
            is_halted: self.shared.is_halted(),
            memory,
        })
    }

    /// Waits until there is something to do.
    fn wait(&self, process: &Process) {
        let due = [self.limits.next_observation(self.job.control.timeout()), self.next_sample];
        let now = Instant::now();
        let timeout = due.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
        let mut poll = PollSet::default();
        if process.outbox.is_empty() {
            poll.readable(process.socket());
        } else {
            poll.readable_or_writable(process.socket());
        }
        let wake = poll.readable(process.handle.wake.descriptor());
        if let Some(exit) = process.handle.exit() {
            poll.readable(exit);
        }
        poll.wait(timeout.into_iter().chain(os::EXIT_INTERVAL).min());
        if poll.is_ready(wake) {
            process.handle.wake.clear();
        }
    }

    /// Handles the frames that have arrived. Returns the result of the job, once it is there.
    fn handle_replies(&mut self, process: &mut Process) -> Result<Option<JobResult>, Misbehaved> {
        let result = self.read_replies(process);
        self.report_progress();
        result
    }

    /// Passes the latest progress to the callback. Without one it is kept, because the caller may
    /// set it a moment after the job was given to a process.
    fn report_progress(&mut self) {
        if self.progress.is_none() {
            return;
        }
        let Some(callback) = self.job.control.on_progress() else { return };
        if let Some((value, message)) = self.progress.take() {
            ignore_panic(move || callback(value, &message));
        }
    }

    fn read_replies(&mut self, process: &mut Process) -> Result<Option<JobResult>, Misbehaved> {
        while let Some(reply) = process.reader.next().map_err(|_| Misbehaved)? {
            match frame::decode::<Reply<'_>>(reply).map_err(|_| Misbehaved)? {
                (Reply::Started { job }, _) if job == self.job.id => self.has_started = true,
                (Reply::Progress { job, value, message }, _) if job == self.job.id => {
                    self.progress = Some((value, frame::cut(message).to_owned()));
                }
                (Reply::Panicking { message, location }, _) => {
                    let [message, location] = [message, location].map(|text| frame::cut(text).to_owned());
                    self.panic = Some(WorkPanic { message, location });
                }
                (Reply::Done { job, outcome }, payload) if job == self.job.id => {
                    return Ok(Some(self.result(&outcome, payload)));
                }
                _ => return Err(Misbehaved),
            }
        }
        Ok(None)
    }

    fn result(&mut self, outcome: &Outcome<'_>, payload: &[u8]) -> JobResult {
        let data = |error| Err(RunError::InvalidData(error));
        match *outcome {
            Outcome::Output => Ok(payload.to_vec()),
            Outcome::Error => Err(RunError::Failed(payload.to_vec())),
            Outcome::Panicked => Err(RunError::Panicked(self.panic.take().unwrap_or_else(|| WorkPanic {
                // A payload that was thrown without calling the panic hook.
                message: "the panic was resumed".to_owned(),
                location: "unknown".to_owned(),
            }))),
            Outcome::InvalidInput { reason } => data(DataError::encoding("input", reason)),
            Outcome::InvalidResult { reason } => data(DataError::encoding("result", reason)),
            Outcome::ResultTooLarge { len } => {
                data(DataError::too_large("result", len, self.shared.config.max_frame_size))
            }
        }
    }
}

/// How [`Exchange::drive`] ended.
enum Ended {
    /// The job has ended, and the process waits for the next one.
    Done(JobResult),
    /// A limit was exceeded, and the grace period is over. The process must be killed.
    Killed(KilledBy),
    /// The process has ended by itself.
    Died(Exit),
    /// The process must be killed, because it broke the protocol.
    Misbehaved,
}

/// The process has sent something that is not part of the protocol.
struct Misbehaved;
