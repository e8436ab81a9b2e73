//! The servers: the variants, the child's side and the parent's side.

use std::{
    future::pending,
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::fd::OwnedFd,
    process::{self, Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use rustix::{
    io::FdFlags,
    net::{AddressFamily, SocketType, sockopt},
    process::{Pid, Signal, getpid, kill_process},
};
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tower_offload::{
    axum::serve as serve_http,
    process::workers::{Supervisor, Worker},
};
use tower_offload_benches::{BoxError, child, latency::Work};

/// The length of the queue of connections, as in tokio's `TcpListener::bind`.
const BACKLOG: i32 = 1024;

/// Maximum time for a server to start, and for it to end by itself.
const TIMEOUT: Duration = Duration::from_secs(10);

const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which a process that was sent SIGSTOP is stopped.
const STOPPED_AFTER: Duration = Duration::from_millis(50);

/// A number of processes and threads.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    workers: usize,
    /// Threads of the runtime of each worker, which run the handlers.
    threads: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A process without a supervisor, which the benchmark starts again when it has killed it.
    Process,
    /// Workers that accept from the socket of their supervisor.
    Shared,
    /// Workers with a supervisor, each with a socket of its own, bound with `SO_REUSEPORT`.
    ReusePort,
}

const fn variant(name: &'static str, workers: usize, threads: usize, kind: Kind) -> Variant {
    Variant { name, workers, threads, kind }
}

pub(super) const VARIANTS: &[Variant] = &[
    variant(super::ONE_PROCESS, 1, 2, Kind::Process),
    variant("1 worker x 2 threads", 1, 2, Kind::Shared),
    variant("2 workers x 1 thread, one socket", 2, 1, Kind::Shared),
    variant("2 workers x 2 threads, one socket", 2, 2, Kind::Shared),
    variant("2 workers x 1 thread, SO_REUSEPORT", 2, 1, Kind::ReusePort),
];

pub(super) fn find(name: &str) -> Result<&'static Variant, BoxError> {
    VARIANTS.iter().find(|it| it.name == name).ok_or_else(|| format!("there is no variant `{name}`").into())
}

/// The server that a child process runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    variant: String,
    work: Work,
    /// 0: any that is free.
    port: u16,
}

/// The child's side, in a supervisor and in its workers: serves until standard input of the
/// supervisor closes, which happens when the parent ends.
pub(super) fn serve(Order { variant, work, port }: Order) -> Result<(), BoxError> {
    let variant = find(&variant)?;
    if variant.kind == Kind::Process {
        let listener = TcpListener::from(bind(port, false)?);
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        thread::spawn(|| at_end_of_input(|| process::exit(0)));
        println!("listening {}\nworker {} ready", listener.local_addr()?, process::id());
        return new_runtime(variant.threads)?.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let _ = serve_http(listener, router(work)).shutdown(pending(), DRAIN_TIMEOUT, None).await;
            Ok(())
        });
    }
    // With `SO_REUSEPORT`, a socket that does not listen reserves the port and gets no connections.
    let listen = move || {
        thread::spawn(|| at_end_of_input(|| _ = kill_process(getpid(), Signal::TERM)));
        let listener = TcpListener::from(bind(port, variant.kind == Kind::ReusePort)?);
        if variant.kind == Kind::Shared {
            rustix::net::listen(&listener, BACKLOG)?;
        }
        println!("listening {}", listener.local_addr()?);
        io::Result::Ok(listener)
    };
    let supervisor = Supervisor::builder().workers(variant.workers).drain_timeout(DRAIN_TIMEOUT).listen(listen);
    supervisor.on_event(|event| println!("{event}")).run(|worker| serve_as_worker(worker, variant, work))?;
    Ok(())
}

fn serve_as_worker(mut worker: Worker, variant: &Variant, work: Work) -> Result<(), BoxError> {
    let mut listener: TcpListener = worker.take_listener(0);
    if variant.kind == Kind::ReusePort {
        listener = bind(listener.local_addr()?.port(), true)?.into();
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
    }
    new_runtime(variant.threads)?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        worker.ready();
        let _ = serve_http(listener, router(work)).shutdown(worker.drain_requested(), DRAIN_TIMEOUT, None).await;
        Ok(())
    })
}

/// Binds a socket that does not listen yet.
fn bind(port: u16, reuse_port: bool) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, reuse_port)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}

fn new_runtime(threads: usize) -> io::Result<runtime::Runtime> {
    if threads == 1 {
        return runtime::Builder::new_current_thread().enable_all().build();
    }
    runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// The handler computes on the thread of the runtime, so that threads and processes differ only in
/// how they share the work.
fn router(work: Work) -> Router {
    let pid = || process::id().to_string();
    let job = move || async move {
        work.run();
        pid()
    };
    Router::new().route("/job", get(job)).route("/pid", get(move || async move { pid() }))
}

fn at_end_of_input(act: impl FnOnce()) {
    let mut ignored = [0; 64];
    while io::stdin().read(&mut ignored).is_ok_and(|count| count > 0) {}
    act();
}

/// The parent's side of a server. Dropping it ends the server and its workers.
pub(super) struct Server {
    variant: &'static Variant,
    work: Work,
    pub(super) address: SocketAddr,
    child: Child,
    /// The lines that the child prints.
    lines: mpsc::Receiver<String>,
    /// The workers that are ready, in the order in which they became so.
    workers: Vec<u32>,
}

impl Server {
    /// Must be called on a thread of normal priority, which the server inherits. Returns when all
    /// workers are ready.
    pub(super) fn start(variant: &'static Variant, work: Work) -> Result<Self, BoxError> {
        Self::start_at(variant, work, 0)
    }

    fn start_at(variant: &'static Variant, work: Work, port: u16) -> Result<Self, BoxError> {
        let mut command = child::command(&Order { variant: variant.name.to_owned(), work, port })?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("the server has no standard output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // The receiver is dropped with the server.
            let _ = BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        // From here on, an error drops this value, which ends the process.
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let mut server = Self { variant, work, address, child, lines, workers: Vec::new() };
        let line = server.lines.recv_timeout(TIMEOUT)?;
        let address = line.strip_prefix("listening ").and_then(|address| address.parse().ok());
        server.address = address.ok_or_else(|| format!("the server of {} printed `{line}`", variant.name))?;
        while server.workers.len() < variant.workers {
            let line = server.lines.recv_timeout(TIMEOUT)?;
            server.note(&line);
        }
        Ok(server)
    }

    /// Notes a worker that is ready.
    fn note(&mut self, line: &str) {
        let pid = line.strip_prefix("worker ").and_then(|line| line.strip_suffix(" ready"));
        self.workers.extend(pid.and_then(|pid| pid.parse::<u32>().ok()));
    }

    /// Kills the worker that has been ready for the longest time. Starts a process without a
    /// supervisor again.
    pub(super) fn kill_one(&mut self) -> Result<(), BoxError> {
        while let Ok(line) = self.lines.try_recv() {
            self.note(&line);
        }
        if self.workers.is_empty() {
            return Err(format!("no worker of {} is left", self.variant.name).into());
        }
        send(self.workers.remove(0), Signal::KILL)?;
        if self.variant.kind == Kind::Process {
            self.child.wait()?;
            *self = Self::start_at(self.variant, self.work, self.address.port())?;
        }
        Ok(())
    }

    /// Stops all workers.
    pub(super) fn stop_all(&self) -> Result<(), BoxError> {
        self.workers.iter().try_for_each(|pid| send(*pid, Signal::STOP))?;
        thread::sleep(STOPPED_AFTER);
        Ok(())
    }

    /// Continues the workers that are left.
    pub(super) fn continue_all(&self) -> Result<(), BoxError> {
        self.workers.iter().try_for_each(|pid| send(*pid, Signal::CONT))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        child::end(&mut self.child, TIMEOUT); // its workers end with it
    }
}

fn send(pid: u32, signal: Signal) -> Result<(), BoxError> {
    let pid = Pid::from_raw(pid.try_into()?).ok_or("0 is no process")?;
    Ok(kill_process(pid, signal)?)
}
