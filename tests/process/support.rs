use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tower_offload::process::{self, Context, ProcessPool, ProcessPoolBuilder, Work};

use crate::soak;

/// Longest wait for something that must happen, far longer than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Environment variable of worker processes that become ready only once a connection to this port
/// is closed.
pub(crate) const HOLD_START: &str = "PROCESS_TEST_HOLD_START";

/// The `main` of worker processes. In an ordinary test run it returns at once.
#[test]
pub(crate) fn process_worker() {
    process::init_with::<(Do, Other, Undecodable, Attributes, Nest, soak::Job, crate::progress::Report)>(|| {
        if let Ok(port) = std::env::var(HOLD_START) {
            let _ = connect(port.parse().unwrap()).read(&mut [0]);
        }
    });
}

pub(crate) fn builder() -> ProcessPoolBuilder {
    ProcessPool::builder().processes(1).arguments(["support::process_worker", "--exact", "--nocapture"])
}

/// Builds a pool without spares whose first process is ready. Each further one becomes ready when
/// the connection to the port is dropped.
pub(crate) async fn pool_that_holds_starts(builder: ProcessPoolBuilder, meeting: &Meeting) -> ProcessPool {
    let builder = builder.spares(0).environment([(HOLD_START, meeting.port().to_string())]);
    let build = tokio::task::spawn_blocking(|| builder.build().unwrap());
    drop(meeting.entered().await);
    build.await.unwrap()
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
    /// Loop with all signals blocked.
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
    /// Close every descriptor, as careless work does, and return.
    CloseDescriptors,
    /// Write these bytes to the socket.
    Garbage(Vec<u8>),
    /// Return, and write garbage to the socket once the connection to this port is closed. Connects
    /// again afterwards.
    GarbageLater(u16),
    /// Write valid frames without end, from several threads.
    Flood,
    /// Fork, and exit with status 3. The fork, whose process id is sent to the port, keeps the
    /// socket open and waits; or leaves the process group and writes valid frames without end.
    Fork(u16, Afterwards),
    /// Write a part of a frame, and then exit with this status or keep the closed socket.
    Truncate(Option<i32>),
    ReadStdin,
    /// Return the length of this file.
    Measure(PathBuf),
    /// Return this environment variable.
    Variable(String),
    Remaining,
    TraceContext,
    /// Connect to the port, and return the remaining time once there is one.
    UntilRemaining(u16),
}

/// What a fork does after its parent has exited.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Afterwards {
    Wait,
    LeaveAndFlood,
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
            Self::Loop => {
                block_signals();
                loop {
                    std::hint::spin_loop();
                }
            }
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
            Self::CloseDescriptors => close_descriptors(),
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
            Self::GarbageLater(port) => {
                let mut held = connect(port);
                thread::spawn(move || {
                    let _ = held.read(&mut [0]);
                    pool_socket().write_all(&[0xff; 4]).unwrap();
                    connect(port);
                });
            }
            Self::Flood => {
                let frames = many_frames(context.job());
                thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| while pool_socket().write_all(&frames).is_ok() {});
                    }
                });
            }
            Self::Fork(port, afterwards) => {
                let fork = fork(afterwards, &many_frames(context.job()));
                write!(connect(port), "{fork}").unwrap();
                std::process::exit(3);
            }
            Self::ReadStdin => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).unwrap();
                return Ok(text.into_bytes());
            }
            Self::Measure(path) => return Ok(fs::read(path).unwrap().len().to_string().into_bytes()),
            Self::Variable(name) => return Ok(std::env::var(name).unwrap().into_bytes()),
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

/// Blocks every signal that can be blocked, on this thread.
#[allow(unsafe_code)]
pub(crate) fn block_signals() {
    // SAFETY: the set is a local variable, which is initialized before it is used.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

#[allow(unsafe_code)]
fn close_descriptors() {
    // SAFETY: this is what the process must survive or end at. No memory is accessed.
    unsafe { (0..100).for_each(|descriptor| _ = libc::close(descriptor)) };
}

/// Accesses memory that is not mapped.
#[allow(unsafe_code)]
pub(crate) fn segfault() -> ! {
    // SAFETY: no object has this address. The system keeps the lowest pages unmapped, so the write
    // ends the process.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
    unreachable!("the address 8 is mapped")
}

/// Returns frames which report that a job has started: a length, the variant and the job. They fit
/// into one buffer of the socket, so that the writes of several threads do not mix.
fn many_frames(job: u64) -> Vec<u8> {
    let job = u8::try_from(job).unwrap();
    assert!(job < 128, "its encoding has one byte");
    [2, 0, 0, 0, 2, job].repeat(500)
}

/// Forks this process and returns the process id of the fork.
#[allow(unsafe_code)]
fn fork(afterwards: Afterwards, frames: &[u8]) -> i32 {
    let socket = socket_number();
    // SAFETY: the fork calls only functions that are safe in a fork of a process with threads, and
    // never returns. `frames` and the socket are valid for as long as it lives.
    unsafe {
        let fork = libc::fork();
        if fork == 0 {
            match afterwards {
                Afterwards::Wait => {
                    libc::pause();
                }
                Afterwards::LeaveAndFlood => {
                    libc::setpgid(0, 0);
                    // Until the pool has closed the socket.
                    while libc::write(socket, frames.as_ptr().cast(), frames.len()) > 0 {}
                }
            }
            libc::_exit(0);
        }
        fork
    }
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

/// Work that returns itself, with attributes of serde that an encoding without names would not
/// support.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<u8>,
    pub(crate) number: u8,
    pub(crate) bytes: Vec<u8>,
    pub(crate) tagged: Option<Tagged>,
    pub(crate) untagged: Vec<Untagged>,
    pub(crate) json: serde_json::Value,
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Tagged {
    Text { text: String },
    Bytes { bytes: Vec<u8>, address: std::net::IpAddr },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Untagged {
    Byte(u8),
    Text(String),
    Bytes(Vec<u8>),
}

/// Work that returns a value with this many levels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Nest(pub(crate) u32);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Nested {
    Not(Box<Nested>),
    End,
}

impl Work for Nest {
    const KIND: &'static str = "nest";
    type Output = Nested;
    type Error = String;

    fn run(self, _: &Context) -> Result<Nested, String> {
        Ok((0..self.0).fold(Nested::End, |inner, _| Nested::Not(Box::new(inner))))
    }
}

impl Work for Attributes {
    const KIND: &'static str = "attributes";
    type Output = Self;
    type Error = String;

    fn run(self, _: &Context) -> Result<Self, String> {
        Ok(self)
    }
}

/// Another type with the kind of [`Other`], which is not passed to `init`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Impostor;

impl Work for Impostor {
    const KIND: &'static str = Other::KIND;
    type Output = u64;
    type Error = String;

    fn run(self, _: &Context) -> Result<u64, String> {
        Ok(7)
    }
}

/// Work whose input panics when it is decoded.
#[derive(Debug, Serialize)]
pub(crate) struct Undecodable;

impl<'de> Deserialize<'de> for Undecodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("undecodable")
    }
}

impl Work for Undecodable {
    const KIND: &'static str = "undecodable";
    type Output = ();
    type Error = ();

    fn run(self, _: &Context) -> Result<(), ()> {
        Ok(())
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
    send_signal(pid, Signal::KILL);
}

pub(crate) fn send_signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Another name of the file of this program, which a test can replace or remove.
pub(crate) struct Program(PathBuf);

impl Program {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_file(&path); // of an earlier run
        fs::hard_link(std::env::current_exe().unwrap(), &path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Replaces the file by a copy, as an upgrade does.
    pub(crate) fn replace(&self) {
        let copy = self.0.with_extension("copy");
        fs::copy(&self.0, &copy).unwrap();
        fs::rename(copy, &self.0).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
