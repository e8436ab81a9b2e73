use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    sync::OnceLock,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tower_offload::process::{self, Context, ProcessPool, ProcessPoolBuilder, Work};

/// Longest wait for something that must happen, far longer than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The `main` of worker processes. In an ordinary test run it returns at once.
#[test]
fn process_worker() {
    process::init::<(Do, Other, crate::progress::Report)>();
}

pub(crate) fn builder() -> ProcessPoolBuilder {
    ProcessPool::builder().processes(1).arguments(["support::process_worker", "--exact", "--nocapture"])
}

/// What a process is told to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Do {
    Echo(Vec<u8>),
    /// Return this many bytes.
    Return(usize),
    Pid,
    Fail(String),
    Panic(String),
    /// Loop with all signals that can be handled ignored.
    Loop,
    /// Connect to the port, and wait until the connection is closed.
    Hold(u16),
    /// Connect to the port, and return once the job is cancelled.
    UntilCancelled(u16),
    /// Use this much memory, and wait.
    Allocate(usize),
    /// Keep this much memory, and return.
    Keep(usize),
    Abort,
    Exit(i32),
    Print(String),
    PrintForever,
    /// Start a program that inherits stdout, and return its process id.
    Spawn,
    /// Start a program, and loop.
    SpawnAndLoop(u16),
    CloseSocket,
    /// Write these bytes to the socket.
    Garbage(Vec<u8>),
    /// Write a part of a frame, and then exit with this status or keep the closed socket.
    Truncate(Option<i32>),
    ReadStdin,
    Remaining,
    TraceContext,
    /// Connect to the port, and return the remaining time once there is one.
    UntilRemaining(u16),
}

impl Work for Do {
    const KIND: &'static str = "do";
    type Output = Vec<u8>;
    type Error = String;

    fn run(self, context: &Context) -> Result<Vec<u8>, String> {
        match self {
            Self::Echo(bytes) => return Ok(bytes),
            Self::Return(len) => return Ok(vec![7; len]),
            Self::Pid => return Ok(std::process::id().to_string().into_bytes()),
            Self::Fail(error) => return Err(error),
            Self::Panic(message) => panic!("{message}"),
            Self::Loop => loop {
                std::hint::spin_loop();
            },
            Self::Hold(port) => {
                let _ = connect(port).read(&mut [0]);
            }
            Self::UntilCancelled(port) => {
                let _connection = connect(port);
                while !context.is_cancelled() {
                    thread::sleep(Duration::from_millis(1));
                }
                return Ok(b"cancelled".to_vec());
            }
            Self::Allocate(bytes) => {
                let memory = vec![1_u8; bytes];
                loop {
                    std::hint::black_box(&memory);
                    thread::sleep(Duration::from_millis(10));
                }
            }
            Self::Keep(bytes) => {
                static KEPT: OnceLock<Vec<u8>> = OnceLock::new();
                KEPT.get_or_init(|| vec![1; bytes]);
            }
            Self::Abort => std::process::abort(),
            Self::Exit(code) => std::process::exit(code),
            Self::Print(text) => {
                std::io::stdout().write_all(text.as_bytes()).unwrap();
                std::io::stdout().flush().unwrap();
                eprintln!("error {text}");
            }
            Self::PrintForever => loop {
                println!("again and again");
            },
            Self::Spawn => return Ok(start_sleeper().to_string().into_bytes()),
            Self::SpawnAndLoop(port) => {
                write!(connect(port), "{}", start_sleeper()).unwrap();
                loop {
                    std::hint::spin_loop();
                }
            }
            Self::CloseSocket => {
                pool_socket().shutdown(std::net::Shutdown::Write).unwrap();
                thread::sleep(PATIENCE);
            }
            Self::Truncate(exit) => {
                let mut socket = pool_socket();
                socket.write_all(&[&100_u32.to_le_bytes()[..], &[7; 3]].concat()).unwrap();
                socket.shutdown(std::net::Shutdown::Write).unwrap();
                if let Some(status) = exit {
                    std::process::exit(status);
                }
                thread::sleep(PATIENCE);
            }
            Self::Garbage(bytes) => pool_socket().write_all(&bytes).unwrap(),
            Self::ReadStdin => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).unwrap();
                return Ok(text.into_bytes());
            }
            Self::TraceContext => return Ok(context.trace_context().unwrap_or_default().as_bytes().to_vec()),
            Self::UntilRemaining(port) => {
                let _connection = connect(port);
                loop {
                    if let Some(left) = context.remaining() {
                        return Ok(left.as_millis().to_string().into_bytes());
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Self::Remaining => {
                assert_eq!(context.remaining().is_some(), tower_offload::remaining().is_some());
                return Ok(context.remaining().map_or(0, |left| left.as_millis()).to_string().into_bytes());
            }
        }
        Ok(Vec::new())
    }
}

/// Starts a program that the pool has to kill, and returns its process id.
#[allow(clippy::zombie_processes)] // This process is killed before it can wait for it.
fn start_sleeper() -> u32 {
    std::process::Command::new("sleep").arg("1000").spawn().unwrap().id()
}

fn socket_number() -> i32 {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers =
        entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")));
    let sockets = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    sockets.min().unwrap()
}

/// Duplicates the socket to the pool, like hostile work could: it is the first socket of the
/// process.
#[allow(unsafe_code)]
fn pool_socket() -> UnixStream {
    // SAFETY: the socket is open for as long as the process lives.
    let socket = unsafe { BorrowedFd::borrow_raw(socket_number()) };
    UnixStream::from(socket.try_clone_to_owned().unwrap())
}

/// A second kind of work.
#[derive(Serialize, Deserialize)]
pub(crate) struct Other;

impl Work for Other {
    const KIND: &'static str = "other";
    type Output = String;
    type Error = ();

    fn run(self, _: &Context) -> Result<String, ()> {
        Ok("other".to_owned())
    }
}

/// Work that is not passed to `init`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Unknown;

impl Work for Unknown {
    const KIND: &'static str = "unknown";
    type Output = ();
    type Error = ();

    fn run(self, _: &Context) -> Result<(), ()> {
        Ok(())
    }
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// A port on which work reports that it runs.
pub(crate) struct Meeting(TcpListener);

impl Meeting {
    pub(crate) fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Waits until work has connected. The connection tells it to continue when it is dropped.
    pub(crate) async fn entered(&self) -> TcpStream {
        let listener = self.0.try_clone().unwrap();
        tokio::task::spawn_blocking(move || listener.accept().unwrap().0).await.unwrap()
    }
}

/// Waits for a condition.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // A process that has not been reaped remains as a zombie.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Returns `true` if the process is not in the system's table, not even as a zombie.
pub(crate) fn is_reaped(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

pub(crate) async fn pid_of(pool: &ProcessPool) -> u32 {
    number(pool.run(Do::Pid).await.unwrap())
}

pub(crate) fn number(text: Vec<u8>) -> u32 {
    String::from_utf8(text).unwrap().parse().unwrap()
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
