//! The process of a worker, and the messages on its control socket.
//!
//! | to the worker | to the supervisor |
//! |---|---|
//! | `LISTENERS`, a count, and that many descriptors: once, first | `READY`, once |
//! | `DRAIN`, once; end of file means the same | |
//!
//! Anything else is ignored. A worker that closes its socket cannot be asked to drain, and is
//! killed when it has not ended in time.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::{
    io::{FdFlags, retry_on_intr},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage, recvmsg, sendmsg},
};
use tokio::time::Instant;

use super::{event::KillReason, worker};
use crate::process::{
    leader::{Exit, GroupLeader},
    os, worker as pool,
};

/// Maximum number of sockets that are passed to a worker.
pub(super) const MAX_LISTENERS: usize = 16;

const LISTENERS: u8 = b'L';
const READY: u8 = b'R';
const DRAIN: u8 = b'D';

/// How workers are started.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// Value of [`worker::MARKER`].
    pub(super) marker: String,
}

/// A worker, from its start until it is reaped. Dropping it kills its process group and reaps it.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) started: Instant,
    /// Why the supervisor has killed it, if it has.
    pub(super) killed: Option<KillReason>,
    leader: GroupLeader,
    control: UnixStream,
    /// Readable once the process has ended. `None` if the system has no such descriptor.
    exit: Option<OwnedFd>,
    /// `READY` or the end of the socket was read. Then nothing of the socket matters.
    is_heard: bool,
}

impl Process {
    /// Starts a worker, which is the leader of a new process group, and passes it the sockets.
    pub(super) fn start(program: &Program, listeners: &[OwnedFd]) -> io::Result<Self> {
        // Stdin is the one descriptor that a process inherits by its number, so no thread that
        // starts a program in between leaks the socket.
        let (control, theirs) = UnixStream::pair()?;
        control.set_nonblocking(true)?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .env(worker::MARKER, &program.marker)
            // A supervisor in a process of a pool: its workers are no such processes.
            .env_remove(pool::MARKER)
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        let leader = GroupLeader::start(&mut command)?;
        // From here on, an error drops the process, which kills it.
        let mut process = Self {
            pid: leader.child.id(),
            started: Instant::now(),
            killed: None,
            leader,
            control,
            exit: None,
            is_heard: false,
        };
        process.exit = os::exit_descriptor(&process.leader.child)?;
        send_listeners(&process.control, listeners)?;
        Ok(process)
    }

    /// Returns what the supervisor waits for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let control = (!self.is_heard).then(|| self.control.as_fd());
        control.into_iter().chain(self.exit.as_ref().map(AsFd::as_fd))
    }

    /// Returns `true` if the worker has reported that it is ready since the last call.
    pub(super) fn is_ready(&mut self) -> bool {
        let mut messages = [0; 64];
        while !self.is_heard {
            match (&self.control).read(&mut messages) {
                Ok(0) => self.is_heard = true,
                Ok(len) if messages[..len].contains(&READY) => {
                    self.is_heard = true;
                    return true;
                }
                Ok(_) => return false, // more is read in the next turn
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_heard = error.kind() != io::ErrorKind::WouldBlock;
                    return false;
                }
            }
        }
        false
    }

    /// Asks the worker to drain.
    pub(super) fn drain(&self) {
        // Fails if it has ended or has closed its socket. Then it ends by itself or is killed.
        let _ = os::send(&self.control, &[DRAIN]);
    }

    pub(super) fn kill(&mut self, reason: KillReason) {
        self.killed.get_or_insert(reason);
        self.leader.kill();
    }

    /// Reaps the process if it has ended, after it has killed what is left of its group.
    pub(super) fn try_reap(&mut self) -> Option<Exit> {
        self.leader.try_reap()
    }
}

fn send_listeners(control: &UnixStream, listeners: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let message = [LISTENERS, u8::try_from(descriptors.len()).unwrap_or(u8::MAX)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many sockets"));
    }
    // The socket is empty, so it accepts the whole message.
    sendmsg(control, &[IoSlice::new(&message)], &mut ancillary, os::SEND_FLAGS)?;
    Ok(())
}

/// Receives the sockets in the worker.
pub(super) fn receive_listeners(control: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut message = [0; 2];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        retry_on_intr(|| recvmsg(control, &mut [IoSliceMut::new(&mut message)], &mut ancillary, os::RECEIVE_FLAGS))?;
    let mut listeners = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            listeners.extend(descriptors);
        }
    }
    if received.bytes != message.len() || message != [LISTENERS, listeners.len() as u8] {
        return Err(io::Error::other("the supervisor is gone"));
    }
    // Where the flag of `recvmsg` does not exist.
    for listener in &listeners {
        rustix::io::fcntl_setfd(listener, FdFlags::CLOEXEC)?;
    }
    Ok(listeners)
}

/// Reports in the worker that it is ready.
pub(super) fn send_ready(control: &UnixStream) {
    // If the supervisor is gone, the worker drains.
    let _ = os::send(control, &[READY]);
}
