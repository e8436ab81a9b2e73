//! The side of the worker process.
//!
//! ```text
//! thread of `init`: reads the socket          thread `offload-work`
//!   Run    --------- channel of 1 ----------->  decode, `Work::run`, encode, write Done
//!   Cancel, Timeout -- JobSignals ----------->  `Context::is_cancelled`, `Context::remaining`
//!   end of file: the process ends at once
//! ```
//!
//! Work does not run on the thread of `init`, so that the process notices the end of its pool while
//! it works, and so that `init` may be called inside of a runtime.

use std::{
    any::TypeId,
    env,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileTypeExt, net::UnixStream},
    },
    panic, process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::Instant;

use super::{
    frame::{self, Fingerprint, FrameReader, Outcome, Progress, Reply, Request, cut},
    os,
    progress::ProgressSender,
    work::{Context, Registry, Work, Works},
};
use crate::{
    panic::{catch_unwind, panic_message},
    pool::Deadline,
    sync::{Mutex, lock},
};

/// Environment variable that marks a worker process. Its value is the process id of the pool,
/// `:`, and the maximum length of a payload.
pub(super) const MARKER: &str = "TOWER_OFFLOAD_PROCESS";
/// Exit status of a process that could not be set up: `EX_OSERR` of `sysexits.h`.
pub(super) const EXIT_SETUP: i32 = 71;
/// Exit status of a process whose pool breaks the protocol: `EX_PROTOCOL`.
const EXIT_PROTOCOL: i32 = 76;
/// Stack of the thread that runs work: as large as that of a main thread on Linux.
const STACK_SIZE: usize = 8 * 1024 * 1024;

/// The kinds of work that this process has passed to `init`, with their types. `None` until `init`
/// is called, in a worker process or in its parent.
static REGISTERED: Mutex<Option<Vec<(&'static str, TypeId)>>> = Mutex::new(None);

/// Serves jobs if this process was started by a [`ProcessPool`](super::ProcessPool), and never
/// returns then. Otherwise returns at once.
///
/// Make it the first line of `main`, before a [`Supervisor`](super::workers::Supervisor) runs, with
/// every kind of work that the program gives to process pools. A second call has no effect in a
/// worker process:
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// # use tower_offload::process::{Context, Work};
/// # #[derive(Serialize, Deserialize)]
/// # struct Thumbnail;
/// # impl Work for Thumbnail {
/// #     const KIND: &'static str = "thumbnail";
/// #     type Output = ();
/// #     type Error = ();
/// #     fn run(self, _: &Context) -> Result<(), ()> { Ok(()) }
/// # }
/// # #[derive(Serialize, Deserialize)]
/// # struct Report;
/// # impl Work for Report {
/// #     const KIND: &'static str = "report";
/// #     type Output = ();
/// #     type Error = ();
/// #     fn run(self, _: &Context) -> Result<(), ()> { Ok(()) }
/// # }
/// fn main() {
///     tower_offload::process::init::<(Thumbnail, Report)>();
///     // the program
/// }
/// ```
///
/// The pool starts the file of the running program again. A line before this one runs in every
/// worker process too. With `#[tokio::main]` it works as the first line of the `async fn main`; the
/// idle threads of the runtime then remain in every worker process.
///
/// A worker process
///
/// * ends when its pool ends, even while it works: the socket to the pool is closed, and Linux
///   kills it if the thread of the pool that has started it is gone;
/// * ignores `SIGINT`, `SIGTERM` and `SIGHUP`, which a terminal or a service manager sends to all
///   processes of a service: the pool decides when its processes end;
/// * runs one job after the other. Global variables, the environment and the current directory stay
///   as a job has left them, and programs that it has started and not ended run on, until the
///   process ends. [`max_jobs(1)`](super::ProcessPoolBuilder::max_jobs) gives each job a new
///   process, for about 3 ms;
/// * reads nothing from stdin. What it writes to stdout and stderr becomes events of the pool.
///
/// # Panics
///
/// Panics if two types of work have the same [`KIND`](super::Work::KIND).
#[track_caller]
pub fn init<W: Works>() {
    init_with::<W>(|| {});
}

/// Like [`init`], and calls `setup` in each worker process before its first job: to install a
/// subscriber, or to load a model that all jobs use. The process is ready when it returns.
///
/// # Panics
///
/// Like [`init`]. If `setup` panics, the process ends, and the pool could not start it.
#[track_caller]
pub fn init_with<W: Works>(setup: impl FnOnce() + Send + 'static) {
    let registry = Registry::of::<W>();
    // Several tests of one program have an `init` each.
    lock(&REGISTERED).get_or_insert_default().extend(registry.types());
    if let Some(pool) = PoolSocket::find() {
        let Err(error) = serve(pool, registry, setup);
        eprintln!("cannot set up a worker process of tower-offload: {error}");
        process::exit(EXIT_SETUP);
    }
}

/// Returns `true` if `init` was called.
pub(super) fn is_initialized() -> bool {
    lock(&REGISTERED).is_some()
}

/// Returns `true` if another type of the same kind was passed to `init`, and this one was not.
pub(super) fn has_other_type<W: Work>() -> bool {
    let registered = lock(&REGISTERED);
    let mut same_kind = registered.iter().flatten().filter(|(kind, _)| *kind == W::KIND).peekable();
    same_kind.peek().is_some() && same_kind.all(|(_, id)| *id != TypeId::of::<W>())
}

/// In a worker process that has not called `init`, tells its pool and returns `true`.
pub(super) fn report_not_initialized() -> bool {
    let pool = PoolSocket::find().filter(|_| !is_initialized());
    if let Some(pool) = &pool {
        // The pool may be gone.
        let _ = (&pool.socket).write_all(&frame::encode(&Reply::NotInitialized));
    }
    pool.is_some()
}

/// The socket to the pool that has started this process, which is its stdin.
struct PoolSocket {
    socket: UnixStream,
    /// Process id of the pool.
    parent: i32,
    max_payload: usize,
}

impl PoolSocket {
    /// Returns `None` if this process is not a worker process. A program that is started by work
    /// inherits the marker, but not the socket.
    fn find() -> Option<Self> {
        let marker = env::var(MARKER).ok()?;
        let (parent, max_payload) = marker.split_once(':')?;
        let (parent, max_payload) = (parent.parse().ok()?, max_payload.parse().ok()?);
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        let is_socket = stdin.metadata().is_ok_and(|stdin| stdin.file_type().is_socket());
        is_socket.then(|| Self { socket: UnixStream::from(OwnedFd::from(stdin)), parent, max_payload })
    }
}

/// Requests about a job that runs, or comes next. A process runs one job at a time, and numbers are
/// not reused, so a request that arrives late affects no other job.
#[derive(Debug, Clone, Default)]
pub(super) struct JobSignals(Arc<Signals>);

#[derive(Debug, Default)]
struct Signals {
    /// The job that was cancelled last. Jobs are numbered from 1.
    cancelled: AtomicU64,
    /// The job whose timeout was set last.
    timeout: Mutex<(u64, Deadline)>,
}

impl JobSignals {
    fn cancel(&self, job: u64) {
        self.0.cancelled.store(job, SeqCst);
    }

    pub(super) fn is_cancelled(&self, job: u64) -> bool {
        self.0.cancelled.load(SeqCst) == job
    }

    fn set_timeout(&self, job: u64, remaining: Duration) {
        *lock(&self.0.timeout) = (job, Deadline::after(remaining));
    }

    /// Returns the timeout of a job that was set after it was given to the process.
    pub(super) fn timeout(&self, job: u64) -> Deadline {
        let (of, deadline) = *lock(&self.0.timeout);
        if of == job { deadline } else { Deadline::NONE }
    }
}

/// A job on its way to the thread that runs it.
struct Assignment {
    frame: Vec<u8>,
    received: Instant,
}

/// What the two threads of a worker process share.
struct Worker {
    /// Locked for one frame.
    socket: Arc<Mutex<UnixStream>>,
    progress: Arc<ProgressSender>,
    registry: Registry,
    signals: JobSignals,
    is_busy: AtomicBool,
    max_payload: usize,
}

/// Serves jobs until the pool closes the socket.
fn serve(
    pool: PoolSocket,
    registry: Registry,
    setup: impl FnOnce() + Send + 'static,
) -> io::Result<std::convert::Infallible> {
    let PoolSocket { socket, parent, max_payload } = pool;
    os::die_with_parent(parent)?;
    // A terminal or a service manager asks all processes to end.
    os::ignore(&[Signal::INT, Signal::TERM, Signal::HUP])?;
    // Work that reads stdin must not read frames. Processes that work starts inherit this one.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    os::name_main_thread();
    let executable = Fingerprint::of(os::running_executable()?.as_ref())?;
    let writer = Arc::new(Mutex::new(socket.try_clone()?));
    let worker = Arc::new(Worker {
        progress: Arc::new(ProgressSender::new(writer.clone())),
        socket: writer,
        registry,
        signals: JobSignals::default(),
        is_busy: AtomicBool::new(false),
        max_payload,
    });
    let (assign, assigned) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("offload-work".to_owned()).stack_size(STACK_SIZE);
    thread.spawn({
        let worker = worker.clone();
        move || worker.work(executable, setup, &assigned)
    })?;
    worker.read(&socket, &assign)
}

impl Worker {
    /// Sets the process up and runs jobs. Never returns.
    fn work(self: &Arc<Self>, executable: Fingerprint, setup: impl FnOnce(), assigned: &mpsc::Receiver<Assignment>) {
        if catch_unwind(setup).is_err() {
            process::exit(EXIT_SETUP); // The panic hook has reported it on stderr.
        }
        // The first frame is `Ready`, also if a thread of `setup` panics meanwhile.
        self.write(&frame::encode(&Reply::Ready { executable, kinds: self.registry.kinds() }));
        // Afterwards, because `setup` may set a hook of its own.
        report_panics(self.clone());
        for Assignment { frame, received } in assigned {
            let reply = self.run(&frame, received);
            self.is_busy.store(false, SeqCst);
            self.write(&reply);
        }
    }

    fn run(&self, request: &[u8], received: Instant) -> Vec<u8> {
        let Ok((Request::Run { job, kind, remaining, trace }, input)) = frame::decode::<Request<'_>>(request) else {
            process::exit(EXIT_PROTOCOL); // `read` has decoded it.
        };
        let Some(handler) = self.registry.find(kind) else {
            let outcome = Outcome::InvalidInput { reason: "unknown kind" };
            return frame::encode(&Reply::Done { job, outcome });
        };
        let remaining = remaining.map(|remaining| remaining.saturating_sub(received.elapsed()));
        let deadline = remaining.map_or(Deadline::NONE, Deadline::after).earlier(self.signals.timeout(job));
        self.write(&frame::encode(&Reply::Started { job }));
        let context = Context {
            job,
            deadline,
            trace: trace.map(str::to_owned),
            signals: self.signals.clone(),
            progress: self.progress.clone(),
        };
        let reply = handler(input, &context, self.max_payload);
        self.progress.flush();
        reply
    }

    /// Writes a frame. If that fails, the pool is gone or the work has closed the socket, which the
    /// thread that reads may not notice.
    fn write(&self, frame: &[u8]) {
        if lock(&self.socket).write_all(frame).is_err() {
            os::kill_self();
        }
    }

    /// Reads requests until the pool closes the socket, and ends the process then.
    fn read(&self, socket: &UnixStream, assign: &mpsc::SyncSender<Assignment>) -> ! {
        let mut reader = FrameReader::new(frame::max_frame(self.max_payload));
        loop {
            while let Some(frame) = reader.next().unwrap_or_else(|_| process::exit(EXIT_PROTOCOL)) {
                match frame::decode::<Request<'_>>(frame) {
                    Ok((Request::Run { .. }, _)) => {
                        self.is_busy.store(true, SeqCst);
                        let received = Instant::now();
                        // Full only if the pool breaks the protocol.
                        if assign.try_send(Assignment { frame: frame.to_vec(), received }).is_err() {
                            process::exit(EXIT_PROTOCOL);
                        }
                    }
                    Ok((Request::Timeout { job, remaining }, _)) => self.signals.set_timeout(job, remaining),
                    Ok((Request::Cancel { job }, _)) => self.signals.cancel(job),
                    Err(_) => process::exit(EXIT_PROTOCOL),
                }
            }
            reader.shrink();
            if reader.read(socket) == Progress::Closed {
                if self.is_busy.load(SeqCst) {
                    // Exit handlers of libraries must not run beside the work.
                    os::kill_self();
                }
                process::exit(0);
            }
        }
    }
}

/// Sends the message and location of each panic to the pool, before the hook that was set before:
/// with `panic = "abort"` there is no later time.
fn report_panics(worker: Arc<Worker>) {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let reply = Reply::Panicking { message: cut(panic_message(info.payload())), location: cut(&location) };
        worker.write(&frame::encode(&reply));
        previous(info);
    }));
}

/// Returns the marker of a worker process whose payloads have at most this number of bytes.
pub(super) fn marker(max_payload: usize) -> String {
    format!("{}:{max_payload}", process::id())
}
