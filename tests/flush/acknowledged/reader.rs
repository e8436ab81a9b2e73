//! A process that reads a client's connection, and can be stopped and killed.

use std::{
    env,
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

const PACE: &str = "TOWER_OFFLOAD_TEST_READER";

/// How a process reads.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// The maximum number of bytes at a time.
    pub(super) chunk: usize,
    /// The time between two chunks.
    pub(super) pause: Duration,
    /// The process reads no further than this number of bytes.
    pub(super) limit: usize,
}

impl Pace {
    pub(super) const FAST: Self = Self { chunk: 64 * 1024, pause: Duration::ZERO, limit: usize::MAX };
}

/// The `main` of a reading process, whose standard input is the socket. In an ordinary test run it
/// returns at once.
#[test]
fn process() {
    let Ok(pace) = env::var(PACE) else { return };
    let pace: Vec<usize> = pace.split(' ').map(|number| number.parse().unwrap()).collect();
    let (pause, mut left) = (Duration::from_micros(pace[1] as u64), pace[2]);
    let mut socket = TcpStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut buffer = vec![0; pace[0]];
    while left > 0 {
        // Bytes are reported before they leave the socket, so an empty socket means that all are.
        let room = buffer.len().min(left);
        let Ok(read @ 1..) = socket.peek(&mut buffer[..room]) else { return };
        io::stderr().write_all(&buffer[..read]).unwrap();
        socket.read_exact(&mut buffer[..read]).unwrap();
        left -= read;
        thread::sleep(pause);
    }
    loop {
        thread::park();
    }
}

/// A reading process. It is killed when this is dropped.
pub(super) struct Reader {
    child: Child,
    reported: watch::Receiver<usize>,
    report: JoinHandle<Vec<u8>>,
}

impl Reader {
    /// Starts a process that reads this socket.
    pub(super) fn start(socket: &TcpStream, pace: Pace) -> Self {
        socket.set_nonblocking(false).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["acknowledged::reader::process", "--exact", "--nocapture"])
            .env(PACE, format!("{} {} {}", pace.chunk, pace.pause.as_micros(), pace.limit))
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let (count, reported) = watch::channel(0);
        let report = tokio::spawn(async move {
            let mut report = Vec::new();
            while pipe.read_buf(&mut report).await.unwrap() > 0 {
                count.send_replace(report.len());
            }
            report
        });
        Self { child, reported, report }
    }

    /// Waits until the process has read this number of bytes, or has ended.
    pub(super) async fn has_read(&mut self, bytes: usize) {
        let _ = self.reported.wait_for(|reported| *reported >= bytes).await;
    }

    /// Returns the number of bytes that the process has read, as far as it is known here.
    pub(super) fn reported(&self) -> usize {
        *self.reported.borrow()
    }

    /// Stops the process (`SIGSTOP`), and waits until it has stopped.
    pub(super) async fn stop(&self) {
        self.signal(Signal::STOP);
        let state = format!("/proc/{}/stat", self.pid().as_raw_nonzero());
        // The state follows the name, which is in parentheses.
        while !std::fs::read_to_string(&state).unwrap().contains(") T ") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets the process continue (`SIGCONT`).
    pub(super) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until the process has read everything that its kernel has.
    pub(super) async fn drain(&self, socket: &TcpStream) {
        while rustix::io::ioctl_fionread(socket).unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Kills the process (`SIGKILL`), and returns what it has read.
    pub(super) async fn kill(mut self) -> Vec<u8> {
        self.child.kill().await.unwrap();
        self.report.await.unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        let id = self.child.id().expect("the process was not waited for");
        Pid::from_raw(id.cast_signed()).unwrap()
    }
}
