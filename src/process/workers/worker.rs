use std::{
    env,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileTypeExt, net::UnixStream},
    },
    process,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tokio::sync::watch;

use super::control;
use crate::{
    panic::ignore_panic,
    process::os::{self, PollSet, Signals},
};

/// Environment variable that marks a worker. Its value is the process id of the supervisor, and the
/// timeouts of a drain and of the kill after it, in milliseconds, separated by `:`.
pub(crate) const MARKER: &str = "TOWER_OFFLOAD_WORKER";

/// Time that the supervisor has to kill a worker before the worker does so itself.
const SUPERVISOR_FIRST: Duration = Duration::from_secs(1);

/// A worker: the process that serves the sockets of a [`Supervisor`](super::Supervisor). Passed to
/// the function that [`run`](super::SupervisorBuilder::run) calls in this process.
#[derive(Debug)]
pub struct Worker {
    listeners: Vec<Option<OwnedFd>>,
    control: UnixStream,
    is_ready: AtomicBool,
    is_draining: watch::Receiver<bool>,
    drain_timeout: Duration,
}

impl Worker {
    /// Takes a socket that the supervisor has bound, in the order of
    /// [`listen`](super::SupervisorBuilder::listen), from 0. It does not block, as tokio's types
    /// require.
    ///
    /// `L` must be the type that was bound: `TcpListener` or `UnixListener` of the standard
    /// library. A worker owns the socket, so that it closes it when it drains.
    ///
    /// # Panics
    ///
    /// Panics if there is no such socket, or if it was taken.
    #[track_caller]
    pub fn take_listener<L: From<OwnedFd>>(&mut self, index: usize) -> L {
        let Some(listener) = self.listeners.get_mut(index).and_then(Option::take) else {
            panic!("the worker has no socket {index}: it has {}, each is taken once", self.listeners.len());
        };
        L::from(listener)
    }

    /// Reports that this worker is ready: what it serves with is loaded, and it accepts connections
    /// next. Calling it again has no effect.
    ///
    /// Until then, the worker that it replaces continues. The supervisor kills a worker that is not
    /// ready within [`start_timeout`](super::SupervisorBuilder::start_timeout).
    pub fn ready(&self) {
        if !self.is_ready.swap(true, Relaxed) {
            control::send_ready(&self.control);
        }
    }

    /// Completes when this worker must stop accepting connections and finish those it has: the
    /// supervisor has asked it to, or is gone, or this process has received SIGTERM or SIGINT.
    ///
    /// It takes the place of `axum::shutdown_signal` in a worker.
    /// Further signals have no effect: the supervisor kills a worker that does not end. One without
    /// a supervisor kills itself after the same time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect, and the next one completes at once if the worker drains.
    pub fn drain_requested(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut is_draining = self.is_draining.clone();
        async move {
            // The sender lives as long as the process.
            let _ = is_draining.wait_for(|is_draining| *is_draining).await;
        }
    }

    /// Returns the time that this worker has to drain, as set with
    /// [`drain_timeout`](super::SupervisorBuilder::drain_timeout): the grace period of
    /// `axum::serve`.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// Returns the process id of this worker.
    pub fn id(&self) -> u32 {
        process::id()
    }
}

/// Returns the marker of the workers of this process.
pub(super) fn marker(drain_timeout: Duration, kill_timeout: Duration) -> String {
    format!("{}:{}:{}", process::id(), drain_timeout.as_millis(), kill_timeout.as_millis())
}

/// The socket to the supervisor that has started this process, which is its stdin.
pub(super) struct SupervisorSocket {
    control: UnixStream,
    supervisor: i32,
    drain_timeout: Duration,
    kill_timeout: Duration,
}

impl SupervisorSocket {
    /// Returns `None` if this process is no worker. A program that a worker starts inherits the
    /// marker, but not the socket.
    pub(super) fn find() -> Option<Self> {
        let marker = env::var(MARKER).ok()?;
        let mut fields = marker.split(':');
        let supervisor = fields.next()?.parse().ok()?;
        let mut timeout = || Some(Duration::from_millis(fields.next()?.parse().ok()?));
        let (drain_timeout, kill_timeout) = (timeout()?, timeout()?);
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        let is_socket = stdin.metadata().is_ok_and(|stdin| stdin.file_type().is_socket());
        is_socket.then(|| {
            let control = UnixStream::from(OwnedFd::from(stdin));
            Self { control, supervisor, drain_timeout, kill_timeout }
        })
    }

    /// Receives the sockets, and starts the thread that waits for the request to drain.
    pub(super) fn connect(self) -> io::Result<Worker> {
        let Self { control, supervisor, drain_timeout, kill_timeout } = self;
        os::check_parent(supervisor)?;
        let signals = Signals::new(&[Signal::TERM, Signal::INT])?;
        os::ignore(&[Signal::HUP])?;
        let listeners = control::receive_listeners(&control)?.into_iter().map(Some).collect();
        // Programs that the worker starts inherit this stdin, not the socket.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        let (drain, is_draining) = watch::channel(false);
        thread::Builder::new().name("offload-worker".to_owned()).spawn({
            let control = control.try_clone()?;
            let timeout = drain_timeout.saturating_add(kill_timeout).saturating_add(SUPERVISOR_FIRST);
            move || watch(&control, &signals, &drain, timeout)
        })?;
        Ok(Worker { listeners, control, is_ready: AtomicBool::new(false), is_draining, drain_timeout })
    }
}

/// Waits until this process must drain, and ends it when it has had the time to.
fn watch(control: &UnixStream, signals: &Signals, drain: &watch::Sender<bool>, timeout: Duration) {
    loop {
        let mut poll = PollSet::default();
        let ends = [poll.readable(control.as_fd()), poll.readable(signals.descriptor())];
        poll.wait(None);
        if ends.into_iter().any(|end| poll.is_ready(end)) {
            break;
        }
    }
    // Wakers are user code.
    ignore_panic(|| _ = drain.send_replace(true));
    thread::sleep(timeout);
    os::kill_own_group();
}
