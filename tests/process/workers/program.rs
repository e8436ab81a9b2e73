//! A program with a supervisor, and a handle to it.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use axum::{Router, extract::Path, routing::get};
use rustix::process::{Pid, Signal, WaitOptions};
use tower_offload::{
    axum::serve,
    process::workers::{Supervisor, Worker, WorkerEvent},
};

use crate::support::PATIENCE;

const SETTINGS: &str = "WORKERS_TEST";
const MODE: &str = "WORKERS_TEST_MODE";
/// Set if a thread of the program reaps all children.
pub(super) const REAP: &str = "WORKERS_TEST_REAP";
/// Marks the processes of a `ProcessPool`.
pub(super) const POOL_MARKER: &str = "TOWER_OFFLOAD_PROCESS";

/// The program, in the supervisor and in its workers. It prints what happens.
#[test]
#[ignore = "run by the other tests"]
fn program() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let settings: Vec<u64> = settings.split(' ').map(|value| value.parse().unwrap()).collect();
    let [workers, port, start, drain, kill] = settings[..] else { panic!("{settings:?}") };
    println!(); // behind what the test harness has printed
    if std::env::var(REAP).is_ok() {
        thread::spawn(reap);
    }
    let listen = move || {
        let listener = TcpListener::bind(("127.0.0.1", port.try_into().unwrap()))?;
        println!("listening {}", listener.local_addr()?);
        Ok(listener)
    };
    let ran = Supervisor::builder()
        .workers(workers.try_into().unwrap())
        .listen(listen)
        .start_timeout(Duration::from_millis(start))
        .drain_timeout(Duration::from_millis(drain))
        .kill_timeout(Duration::from_millis(kill))
        .on_event(on_event)
        .run(work);
    match ran {
        Ok(report) => println!("stopped: {report}"),
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            println!("failed: {error}{source}");
            std::process::exit(1);
        }
    }
    std::process::exit(0);
}

/// Reaps all children of this process.
fn reap() {
    loop {
        if rustix::process::wait(WaitOptions::empty()).is_err() {
            thread::sleep(Duration::from_millis(1)); // there is none
        }
    }
}

fn on_event(event: &WorkerEvent) {
    println!("{event}");
    while matches!(event, WorkerEvent::Died { .. }) && hold_path(&mode_path()).exists() {
        thread::sleep(Duration::from_millis(2));
    }
}

fn mode_path() -> PathBuf {
    std::env::var_os(MODE).unwrap().into()
}

/// While there is such a file, the callback of a death does not return.
fn hold_path(mode: &std::path::Path) -> PathBuf {
    mode.with_extension("hold")
}

/// Does what the file of the test says.
fn work(worker: Worker) -> Result<(), String> {
    let read_mode = || fs::read_to_string(mode_path()).unwrap();
    if read_mode() == "wait" {
        println!("waiting {}", worker.id());
    }
    while read_mode() == "wait" {
        thread::sleep(Duration::from_millis(2));
    }
    match read_mode().as_str() {
        "serve" => serve_http(worker).map_err(|error| error.to_string()),
        "fail" => Err("no configuration".to_owned()),
        "silent" => loop {
            thread::sleep(PATIENCE);
        },
        "stuck" => stuck(&worker),
        "die" => {
            worker.ready();
            std::process::exit(3);
        }
        "stuck with a child" => {
            println!("child {}", Command::new("sleep").arg("600").spawn().unwrap().id());
            stuck(&worker)
        }
        "stuck in another group" => {
            let group = rustix::process::getpgid(rustix::process::getppid()).unwrap();
            rustix::process::setpgid(None, Some(group)).unwrap();
            stuck(&worker)
        }
        "environment" => {
            println!("marker of a pool: {:?}", std::env::var(POOL_MARKER));
            stuck(&worker)
        }
        mode => panic!("{mode}"),
    }
}

fn stuck(worker: &Worker) -> ! {
    worker.ready();
    loop {
        thread::sleep(PATIENCE);
    }
}

#[tokio::main]
async fn serve_http(mut worker: Worker) -> io::Result<()> {
    let slow = async |Path(ms): Path<u64>| {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        "slow"
    };
    let app = Router::new().route("/pid", get(async || std::process::id().to_string())).route("/slow/{ms}", get(slow));
    let listener = tokio::net::TcpListener::from_std(worker.take_listener(0))?;
    worker.ready();
    serve(listener, app).shutdown(worker.drain_requested(), worker.drain_timeout(), None).await;
    Ok(())
}

/// How a program is started. Times are in milliseconds.
pub(super) struct Settings {
    pub(super) mode: &'static str,
    pub(super) workers: usize,
    pub(super) port: u16,
    pub(super) start_timeout: u64,
    pub(super) drain_timeout: u64,
    pub(super) kill_timeout: u64,
    /// A program that starts the program, and its arguments.
    pub(super) launcher: &'static [&'static str],
    /// A variable that is set in the environment.
    pub(super) variable: Option<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: "serve",
            workers: 2,
            port: 0,
            start_timeout: 60_000,
            drain_timeout: 60_000,
            kill_timeout: 60_000,
            launcher: &[],
            variable: None,
        }
    }
}

/// A running program. It is killed when its test fails.
pub(super) struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
    mode: PathBuf,
}

impl Program {
    pub(super) fn start(settings: &Settings) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("workers-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        let Settings { mode, workers, port, start_timeout, drain_timeout, kill_timeout, launcher, variable } = settings;
        write_mode(&path, mode);
        let program = std::env::current_exe().unwrap();
        let mut words = launcher.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args(["workers::program::program", "--exact", "--ignored", "--nocapture"])
            .envs(variable.map(|name| (name, "1:1")))
            .env(SETTINGS, format!("{workers} {port} {start_timeout} {drain_timeout} {kill_timeout}"))
            .env(MODE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, mode: path }
    }

    /// Starts a program, and waits until its workers are ready. Returns their process ids too.
    pub(super) fn ready(settings: &Settings) -> (Self, SocketAddr, Vec<u32>) {
        let program = Self::start(settings);
        let address = program.until("listening ").parse().unwrap();
        let pids = (0..settings.workers).map(|_| program.next_ready()).collect();
        (program, address, pids)
    }

    /// Sets what workers do that are started from now on.
    pub(super) fn set_mode(&self, mode: &str) {
        write_mode(&self.mode, mode);
    }

    /// Has the next callback of a death wait until [`release`](Self::release).
    pub(super) fn hold(&self) {
        fs::write(hold_path(&self.mode), "").unwrap();
    }

    pub(super) fn release(&self) {
        fs::remove_file(hold_path(&self.mode)).unwrap();
    }

    /// Sends a signal again and again until there is a line that contains `text`.
    pub(super) fn signal_until(&self, signal: Signal, text: &str) {
        loop {
            self.signal(signal);
            if self.lines.recv_timeout(Duration::from_millis(50)).is_ok_and(|line| line.contains(text)) {
                return;
            }
        }
    }

    /// Waits for a line that begins with `start`, and returns its rest.
    pub(super) fn until(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line `{start}`"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    /// Waits for a line that contains `text`.
    pub(super) fn until_contains(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line with `{text}`"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until a worker is ready.
    pub(super) fn next_ready(&self) -> u32 {
        let line = self.until_contains(" ready");
        line.strip_prefix("worker ").unwrap().strip_suffix(" ready").unwrap().parse().expect(&line)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits until the program ends. Returns its exit code and the lines that are left.
    pub(super) fn end(mut self) -> (Option<i32>, Vec<String>) {
        let mut lines = Vec::new();
        // Until the last worker has closed the pipe.
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            lines.push(line);
        }
        (self.child.wait().unwrap().code(), lines)
    }
}

/// Writes the file at once, for workers that read it meanwhile.
fn write_mode(path: &std::path::Path, mode: &str) {
    let new = path.with_extension("new");
    fs::write(&new, mode).unwrap();
    fs::rename(new, path).unwrap();
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(hold_path(&self.mode));
        let _ = fs::remove_file(&self.mode);
    }
}

pub(super) fn send_signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Opens a connection, which a worker accepts, and sends a request that takes this time.
pub(super) fn send_slow(address: SocketAddr, ms: u64) -> TcpStream {
    let mut stream = connect(address);
    write_request(&mut stream, &format!("/slow/{ms}"), "keep-alive").unwrap();
    stream
}

/// Opens a connection, which a worker accepts.
pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write_request(&mut stream, "/pid", "keep-alive").unwrap();
    read_body(&mut stream).unwrap();
    stream
}

pub(super) fn write_request(stream: &mut TcpStream, path: &str, connection: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: site\r\nconnection: {connection}\r\n\r\n").as_bytes())
}

/// Reads a response and returns its body.
pub(super) fn read_body(stream: &mut TcpStream) -> io::Result<String> {
    read_response(stream).map(|(body, _)| body)
}

/// Reads a response. Returns its body, and `true` if the server closes the connection behind it.
pub(super) fn read_response(stream: &mut TcpStream) -> io::Result<(String, bool)> {
    let mut response = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let text = String::from_utf8_lossy(&response);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if length == Some(body.len()) && head.starts_with("HTTP/1.1 200 ") {
                return Ok((body.to_owned(), head.contains("connection: close")));
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other(format!("closed after {text:?}"))),
            len => response.extend_from_slice(&buffer[..len]),
        }
    }
}

pub(super) fn pid_at(address: SocketAddr) -> u32 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write_request(&mut stream, "/pid", "close").unwrap();
    read_body(&mut stream).unwrap().parse().unwrap()
}
