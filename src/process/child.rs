use std::{
    fs::File,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    frame::{FrameReader, Outbox, Progress, max_frame},
    leader::{Exit, GroupLeader},
    os::{self, PollSet},
    output::{Output, OutputStream},
    shared::Config,
    worker, workers,
};
use crate::sync::{Mutex, lock};

/// A worker process, from its start until it is reaped. It has one owner at a time: the supervisor
/// while it starts or ends, the roster while it is idle, and the driver of a job while it is busy.
///
/// Dropping it kills its process group and reaps it, so no process is ever forgotten.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) handle: Arc<ProcessHandle>,
    leader: GroupLeader,
    /// Does not block.
    socket: UnixStream,
    pub(super) reader: FrameReader,
    pub(super) outbox: Outbox,
    pub(super) started: Instant,
    /// When it reaches its maximum age.
    pub(super) expires: Option<Instant>,
    /// Number of jobs that it has run.
    pub(super) jobs: u64,
}

/// The part of a process that threads other than its owner use.
#[derive(Debug)]
pub(super) struct ProcessHandle {
    pub(super) pid: u32,
    stdout: File,
    stderr: File,
    /// Locked while lines are read and reported.
    pub(super) output: Mutex<Output>,
    /// Readable once the process has ended. `None` if the system has no such descriptor.
    exit: Option<OwnedFd>,
    pub(super) wake: Wake,
}

impl ProcessHandle {
    pub(super) fn stream(&self, stream: OutputStream) -> &File {
        match stream {
            OutputStream::Stdout => &self.stdout,
            OutputStream::Stderr => &self.stderr,
        }
    }

    pub(super) fn exit(&self) -> Option<BorrowedFd<'_>> {
        self.exit.as_ref().map(AsFd::as_fd)
    }
}

impl Process {
    /// Starts a process, which is the leader of a new process group.
    pub(super) fn start(config: &Config) -> io::Result<Self> {
        // Both ends are closed when another program is executed. Stdin is the one descriptor that a
        // process inherits by its number, so no thread that starts a program in between leaks it.
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let mut command = Command::new(&config.program);
        // Not `/proc/self/exe`, so that tools for processes show the name of the program.
        if let Some(name) = std::env::args_os().next().filter(|_| config.is_own_program) {
            command.arg0(name);
        }
        command
            .args(&config.arguments)
            .envs(config.environment.iter().map(|(key, value)| (key, value)))
            .env(worker::MARKER, worker::marker(config.max_frame_size))
            // A pool in a worker of a supervisor: its processes are no such workers.
            .env_remove(workers::MARKER)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // From here on, an error kills and reaps the process.
        let mut leader = GroupLeader::start(&mut command)?;
        let handle = ProcessHandle::new(&mut leader.child)?;
        let started = Instant::now();
        Ok(Self {
            handle: Arc::new(handle),
            leader,
            socket,
            reader: FrameReader::new(max_frame(config.max_frame_size)),
            outbox: Outbox::default(),
            started,
            expires: config.max_age.and_then(|age| started.checked_add(with_jitter(age))),
            jobs: 0,
        })
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads once from the socket.
    pub(super) fn read(&mut self) -> Progress {
        self.reader.read(&self.socket)
    }

    /// Writes as much of the outbox as the socket accepts. An error means that the process has
    /// ended or has closed its socket.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.outbox.flush(&self.socket)
    }

    /// Closes the socket, at which the process ends by itself.
    pub(super) fn close(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Kills the process group.
    pub(super) fn kill(&self) {
        self.leader.kill();
    }

    /// Reaps the process if it has ended, after it has killed what is left of its group.
    pub(super) fn try_reap(&mut self) -> Option<Exit> {
        self.leader.try_reap()
    }

    /// Like `try_reap`, but waits up to `timeout`.
    pub(super) fn reap(&mut self, timeout: Duration) -> Option<Exit> {
        let until = Instant::now().checked_add(timeout);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if let Some(exit) = self.try_reap() {
                return Some(exit);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let mut poll = PollSet::default();
            let interval = match self.handle.exit() {
                Some(exit) => {
                    poll.readable(exit);
                    left
                }
                None => left.into_iter().chain(os::EXIT_INTERVAL).min(),
            };
            poll.wait(interval);
        }
    }

    /// Returns `true` if the process has ended, reaped or not.
    pub(super) fn has_ended(&self) -> bool {
        self.leader.has_ended()
    }
}

/// Shortens an age by up to a tenth, at random, so that processes that were started together are
/// not recycled together.
fn with_jitter(age: Duration) -> Duration {
    // Each state has random keys.
    let random = RandomState::new().build_hasher().finish();
    age - (age / 10).mul_f64(random as f64 / u64::MAX as f64)
}

impl ProcessHandle {
    fn new(child: &mut Child) -> io::Result<Self> {
        let closed = || io::Error::other("the process has no output");
        let stdout = File::from(OwnedFd::from(child.stdout.take().ok_or_else(closed)?));
        let stderr = File::from(OwnedFd::from(child.stderr.take().ok_or_else(closed)?));
        os::set_nonblocking(&stdout)?;
        os::set_nonblocking(&stderr)?;
        let pid = child.id();
        Ok(Self {
            pid,
            stdout,
            stderr,
            output: Mutex::new(Output::new(pid)),
            exit: os::exit_descriptor(child)?,
            wake: Wake::new()?,
        })
    }
}

/// Wakes a thread that waits for descriptors.
#[derive(Debug)]
pub(super) struct Wake {
    receiver: UnixStream,
    sender: UnixStream,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        Ok(Self { receiver, sender })
    }

    /// Wakes the thread, now or when it waits next.
    pub(super) fn wake(&self) {
        // Fails if the buffer is full, which wakes the thread as well.
        let _ = (&self.sender).write(&[0]);
    }

    /// Forgets earlier wake-ups.
    pub(super) fn clear(&self) {
        let mut buffer = [0; 64];
        while matches!((&self.receiver).read(&mut buffer), Ok(len) if len == buffer.len()) {}
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// Receives the progress of a job.
pub(super) type OnProgress = Arc<dyn Fn(f64, &str) + Send + Sync>;

/// What a caller wants of a job that may be running: shared by the caller's future and the driver.
#[derive(Default)]
pub(super) struct JobControl(Mutex<ControlState>);

#[derive(Default)]
struct ControlState {
    is_cancelled: bool,
    timeout: Option<Duration>,
    on_progress: Option<OnProgress>,
    /// The process that runs the job.
    process: Option<Arc<ProcessHandle>>,
}

impl JobControl {
    pub(super) fn cancel(&self) {
        self.change(|state| state.is_cancelled = true);
    }

    /// Sets the timeout, unless there is a shorter one.
    pub(super) fn set_timeout(&self, timeout: Duration) {
        self.change(|state| state.timeout = Some(state.timeout.map_or(timeout, |set| set.min(timeout))));
    }

    /// Sets who gets the progress. The driver passes on the latest report if it came before.
    pub(super) fn set_on_progress(&self, callback: OnProgress) {
        let mut previous = None;
        self.change(|state| previous = state.on_progress.replace(callback));
        drop(previous); // user code, after the lock
    }

    pub(super) fn on_progress(&self) -> Option<OnProgress> {
        lock(&self.0).on_progress.clone()
    }

    fn change(&self, change: impl FnOnce(&mut ControlState)) {
        let mut state = lock(&self.0);
        change(&mut state);
        // Under the lock, so that the wake-up does not reach a later job of the process.
        if let Some(process) = &state.process {
            process.wake.wake();
        }
    }

    /// Sets which process is woken by changes.
    pub(super) fn set_process(&self, process: Option<Arc<ProcessHandle>>) {
        lock(&self.0).process = process;
    }

    pub(super) fn is_cancelled(&self) -> bool {
        lock(&self.0).is_cancelled
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        lock(&self.0).timeout
    }
}
