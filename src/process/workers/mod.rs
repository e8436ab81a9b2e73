//! Several worker processes that serve one port.
//!
//! A [`Supervisor`] binds the port once and starts worker processes, which accept connections from
//! the same socket. It restarts a worker that dies, and replaces all of them on SIGHUP while they
//! serve.
//!
#![cfg_attr(all(feature = "axum", feature = "flush"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "axum", feature = "flush")), doc = "```ignore")]
//! use std::{error::Error, io, net::TcpListener};
//! use axum::{Router, routing::get};
//! use tower_offload::{axum::serve, process::workers::{Supervisor, Worker}};
//!
//! fn main() -> Result<(), Box<dyn Error>> {
//!     let listen = || TcpListener::bind("127.0.0.1:3000");
//!     let report = Supervisor::builder().workers(4).listen(listen).run(work)?;
//!     println!("stopped: {report}");
//!     Ok(())
//! }
//!
//! /// Runs in each worker process.
//! #[tokio::main]
//! async fn work(mut worker: Worker) -> io::Result<()> {
//!     let app = Router::new().route("/", get(async || "hello"));
//!     let listener = tokio::net::TcpListener::from_std(worker.take_listener(0))?;
//!     worker.ready();
//!     serve(listener, app).shutdown(worker.drain_requested(), worker.drain_timeout(), None).await;
//!     Ok(())
//! }
//! ```
//!
//! # When to use it
//!
//! One process with a multi-threaded runtime uses all cores. Several processes are not faster. They
//! give isolation: a crash, a leak or a blocked runtime costs one worker. And they give upgrades: a
//! reload starts the new version of the program before the old one ends.
//!
//! # When not to
//!
//! When workers need common state: caches, rate limits, counters and connection pools exist once in
//! each worker. A store of tasks on SQLite allows one process: two workers do not start, and the
//! error names the remedy, which is Postgres. For single calls that must be killed, use a
//! [`ProcessPool`](crate::process::ProcessPool). The guide has measurements and a list of what
//! workers do not share:
//! [When a thread is not enough](crate::guide::when_a_thread_is_not_enough).
//!
//! # Signals
//!
//! | signal to the supervisor | effect |
//! |---|---|
//! | SIGHUP | reload: replaces the workers, one at a time |
//! | SIGTERM, SIGINT | drains all workers and ends; another one, a second later or more, kills them |
//! | SIGKILL | the workers notice it, drain, and end |
//!
//! A worker that receives SIGTERM or SIGINT itself drains and ends, and another one starts then.
//!
//! If SIGCHLD is ignored, which a program may inherit, the supervisor adds a handler without
//! effect: the system discards exit statuses while it is ignored (Linux). A program that reaps all
//! of its children itself, with `waitpid(-1)`, may take the exit status of a worker. The worker is
//! restarted then too, and its status is `None`.
//!
//! As process 1 of a container, a supervisor does not reap the orphans of other processes. Run it
//! below an init such as `tini` (`docker run --init`) if workers start programs that outlive them.
//!
//! # What is promised
//!
//! * A reload asks a worker to drain only when its successor is [ready](Worker::ready), so it never
//!   lowers the number of workers that serve. The first successor must be ready for a second before
//!   any worker is asked to drain, so a version that does not start, or dies within that second,
//!   replaces none. If a later successor does not become ready, or dies within a second while the
//!   reload lasts, the reload ends with an event, and the old workers that are left continue.
//! * A worker that drains as in the example answers the requests in progress. A client that sends a
//!   request at the moment at which the worker closes its idle connection gets no answer: see
//!   "Requests that are not answered" in the documentation of `axum::serve`.
//! * The supervisor keeps the socket open, so connections are not refused while workers die and
//!   start: they wait in the queue of the socket. A worker that is killed loses the connections
//!   that it had accepted, and no others.
//! * A worker that is asked to drain has [`drain_timeout`](SupervisorBuilder::drain_timeout), and
//!   is killed [`kill_timeout`](SupervisorBuilder::kill_timeout) after that.
//! * A worker that dies is restarted at once. If it dies again within a second, restarts wait from
//!   100 ms to 10 s.
//! * If a worker is not ready when the supervisor starts, [`run`](SupervisorBuilder::run) ends the
//!   others and returns an error. Later, such a start is retried.
//! * When the supervisor ends in any way, its workers end.
//!
//! A worker runs the file at the path of the program. A worker that is restarted after the file was
//! replaced is of the new version already. By default, symbolic links in the path are resolved when
//! the supervisor starts. If a new version is deployed by changing a link, such as `current`, pass
//! a path with the link to [`program`](SupervisorBuilder::program).
//!
//! # One socket, not `SO_REUSEPORT`
//!
//! With `SO_REUSEPORT`, each worker has a socket and a queue of its own. When a worker ends, the
//! connections in its queue are reset, unless the kernel moves them, which Linux does from 5.14 on
//! if `net.ipv4.tcp_migrate_req` is set. It is off by default: `sysctl net.ipv4.tcp_migrate_req`
//! prints its value. Here, all workers accept from one queue, which the supervisor owns, so no
//! connection in it is lost, and the setting does not matter. A connection also goes to a worker
//! that is free. In exchange, the distribution is not even, and a new connection wakes every idle
//! worker.
//!
//! The queue ends with the supervisor. To replace the supervisor itself without losing it, have
//! systemd own the socket, as in the next section. Two supervisors with `SO_REUSEPORT` are the case
//! above.
//!
//! # Socket activation
//!
//! The supervisor takes a socket from systemd with the crate `listenfd`, in the closure of
//! [`listen`](SupervisorBuilder::listen): see `examples/workers.rs`. The workers need nothing for
//! it. systemd sends SIGTERM to all processes of a service, which a worker understands as a request
//! to drain.
//!
//! # Observability
//!
//! [`SupervisorReport`] has all counters, and [`on_event`](SupervisorBuilder::on_event) sees every
//! [`WorkerEvent`]. In the supervisor, feature `metrics` records these:
//!
//! | metric | kind | value |
//! |---|---|---|
//! | `offload_workers` | gauge | workers that are ready |
//! | `offload_worker_starts_total` | counter | workers that became ready |
//! | `offload_worker_start_failures_total` | counter | workers that could not be started |
//! | `offload_worker_deaths_total` | counter | workers that ended without having been asked |
//! | `offload_worker_kills_total` | counter | workers that the supervisor has killed; label `reason`: `start_timeout`, `drain_timeout`, `halted` |
//! | `offload_worker_reloads_total` | counter | reloads; label `result`: `replaced`, `failed` |
//!
//! Feature `tracing` emits these events:
//!
//! | event | level | fields |
//! |---|---|---|
//! | `worker ready` | info | `pid`, `start_seconds` |
//! | `worker could not be started` | error | `reason`, `retry_seconds` |
//! | `worker drains` | info | `pid` |
//! | `worker killed` | warn | `pid`, `reason` |
//! | `worker died` | error | `pid`, `status`, `restart_seconds` |
//! | `worker ended` | info | `pid`, `status` |
//! | `reloading the workers`, `workers reloaded` | info | |
//! | `reload failed` | error | `reason` |

mod control;
mod error;
mod event;
mod fleet;
mod supervisor;
mod worker;

use std::{env, ffi::OsString, fmt, io, os::fd::OwnedFd, path::PathBuf, process, sync::Arc, thread, time::Duration};

pub(super) use self::worker::MARKER;
use self::{
    control::{MAX_LISTENERS, Program},
    error::ErrorKind,
    event::{OnEvent, Reporter},
    fleet::{Fleet, Timeouts},
    supervisor::Supervision,
    worker::SupervisorSocket,
};
pub use self::{
    error::SupervisorError,
    event::{KillReason, SupervisorReport, WorkerEvent},
    worker::Worker,
};
use crate::process::{os, worker as pool};

/// Exit status of a worker that could not be set up: `EX_OSERR` of `sysexits.h`.
const EXIT_SETUP: i32 = 71;

/// The longest timeout, a year: markers have milliseconds, and times are added.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Keeps worker processes running that serve the same sockets. See the [module docs](self).
#[derive(Debug)]
pub struct Supervisor(());

impl Supervisor {
    /// Returns a builder, with a worker for each core.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder {
            workers: None,
            listeners: Vec::new(),
            start_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            kill_timeout: Duration::from_secs(5),
            program: None,
            arguments: None,
            on_event: None,
        }
    }
}

/// Binds a socket.
type Listen = Box<dyn FnOnce() -> io::Result<OwnedFd> + Send>;

/// Configures and runs a [`Supervisor`]. Created by [`Supervisor::builder`].
#[must_use = "a builder does nothing until `run`"]
pub struct SupervisorBuilder {
    workers: Option<usize>,
    listeners: Vec<Listen>,
    start_timeout: Duration,
    drain_timeout: Duration,
    kill_timeout: Duration,
    program: Option<PathBuf>,
    arguments: Option<Vec<OsString>>,
    on_event: Option<OnEvent>,
}

impl SupervisorBuilder {
    /// Sets the number of workers that serve at the same time, from 1 to 1000. During a reload
    /// there are more: one that starts, and the old ones while they drain.
    ///
    /// The supervisor has two file descriptors for each process. For several hundred workers, raise
    /// the limit of open files, which often is 1024 (`ulimit -n`, `LimitNOFILE` of systemd).
    ///
    /// Default: the available parallelism.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Adds a socket that the workers serve, from 1 to 16: a `TcpListener` or a `UnixListener` of
    /// the standard library. `bind` runs once, in the supervisor only.
    ///
    /// The queue of the socket holds the connections that no worker has accepted. Its length is
    /// that which `bind` requests; the standard library requests 128 on most systems.
    pub fn listen<L: Into<OwnedFd>>(mut self, bind: impl FnOnce() -> io::Result<L> + Send + 'static) -> Self {
        self.listeners.push(Box::new(|| bind().map(Into::into)));
        self
    }

    /// Sets the time that a worker has until it is [ready](Worker::ready). Default: 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets the time that a worker has to finish its requests when it drains. Default: 30 s, which
    /// is longer than most requests take, and leaves time within the 90 s of systemd.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets the time between the end of [`drain_timeout`](Self::drain_timeout) and the kill of a
    /// worker that has not ended. Default: 5 s, in which a program can store its state after its
    /// server has ended.
    pub fn kill_timeout(mut self, timeout: Duration) -> Self {
        self.kill_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets the program that the workers run, which must call [`run`](Self::run) too.
    ///
    /// Default: [`current_exe`](std::env::current_exe) when the supervisor starts, in which
    /// symbolic links are resolved. If a new version is deployed by changing a link, pass a path
    /// with the link, or a reload starts the old version.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Sets the arguments of the workers. Default: the arguments of this process.
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a callback for what happens to the workers, in addition to the events of feature
    /// `tracing`. It runs on the thread of [`run`](Self::run) and must not block.
    pub fn on_event(mut self, callback: impl Fn(&WorkerEvent) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Arc::new(callback));
        self
    }

    /// In the supervisor, starts the workers and keeps them running until SIGTERM or SIGINT. In a
    /// worker process, calls `work` and ends the process with its result.
    ///
    /// If `work` uses a [`ProcessPool`](super::ProcessPool), [`init`](super::init) is the first
    /// line of `main`, before this call.
    ///
    /// The program is started again for each worker, so what comes before this call in `main` runs
    /// in every worker too. Only the code behind it is the supervisor's alone. Call it outside of a
    /// runtime: `work` starts one of its own, and the supervisor needs none.
    ///
    /// A worker exits with status 0 if `work` returns `Ok`. Otherwise it prints the error to stderr
    /// and exits with status 1. No destructor of `main` runs. Its stdin is empty, and it has a
    /// process group of its own. When it ends, the supervisor kills the programs that it has
    /// started and that are left in its group. Without a supervisor, they are killed only if the
    /// worker does not end in time.
    ///
    /// After `run` has returned, SIGHUP, SIGTERM and SIGINT have no effect on this process. A
    /// program that continues must handle them itself.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is invalid, if a socket cannot be bound, or if a worker is not
    /// ready when it ends or times out before all have been ready once. No worker runs then.
    pub fn run<E: fmt::Display>(
        self,
        work: impl FnOnce(Worker) -> Result<(), E>,
    ) -> Result<SupervisorReport, SupervisorError> {
        if let Some(socket) = SupervisorSocket::find() {
            run_worker(socket, work);
        }
        if pool::report_not_initialized() {
            // Otherwise each process of a pool in a worker would be a supervisor with workers.
            return Err(SupervisorError::configuration(
                "this is a process of a `ProcessPool`: make `process::init` the first line of `main`, before the supervisor",
            ));
        }
        let workers = self.workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        self.validate(workers).map_err(SupervisorError::configuration)?;
        let system = |error| SupervisorError(ErrorKind::System(error));
        let program = Program {
            path: self.program.map_or_else(env::current_exe, Ok).map_err(system)?,
            arguments: self.arguments.unwrap_or_else(|| env::args_os().skip(1).collect()),
            marker: worker::marker(self.drain_timeout, self.kill_timeout),
        };
        let drain = self.drain_timeout + self.kill_timeout;
        let fleet = Fleet::new(workers, Timeouts { start: self.start_timeout, drain });
        let supervision = Supervision::new(program, fleet, Reporter::new(self.on_event)).map_err(system)?;
        let bind = |listen: Listen| {
            let listener = listen()?;
            os::set_nonblocking(&listener)?;
            Ok(listener)
        };
        let listeners = self.listeners.into_iter().map(bind).collect::<io::Result<Vec<_>>>();
        supervision.run(listeners.map_err(|error| SupervisorError(ErrorKind::Listen(error)))?)
    }

    fn validate(&self, workers: usize) -> Result<(), &'static str> {
        if !(1..=1000).contains(&workers) {
            Err("`workers` must be from 1 to 1000")
        } else if !(1..=MAX_LISTENERS).contains(&self.listeners.len()) {
            Err("workers serve from 1 to 16 sockets: call `listen` for each")
        } else if self.start_timeout.is_zero() {
            Err("`start_timeout` must not be zero")
        } else {
            Ok(())
        }
    }
}

/// Serves as a worker, and ends the process.
fn run_worker<E: fmt::Display>(socket: SupervisorSocket, work: impl FnOnce(Worker) -> Result<(), E>) -> ! {
    let worker = socket.connect().unwrap_or_else(|error| {
        eprintln!("error: cannot set up a worker: {error}");
        process::exit(EXIT_SETUP)
    });
    match work(worker) {
        Ok(()) => process::exit(0),
        Err(error) => {
            // With the sources of an `anyhow::Error`.
            eprintln!("error: {error:#}");
            process::exit(1)
        }
    }
}

impl fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorBuilder")
            .field("workers", &self.workers)
            .field("listeners", &self.listeners.len())
            .field("start_timeout", &self.start_timeout)
            .field("drain_timeout", &self.drain_timeout)
            .field("kill_timeout", &self.kill_timeout)
            .finish_non_exhaustive()
    }
}
