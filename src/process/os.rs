//! The system calls of this module, and what Linux has over other Unix systems.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::Child,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::retry_on_intr,
    net::{RecvFlags, SendFlags},
    process::{Pid, Signal, WaitId, WaitIdOptions},
};

/// Interval in which processes are polled that have no file descriptor for their end.
pub(super) const EXIT_INTERVAL: Option<Duration> =
    if cfg!(target_os = "linux") { None } else { Some(Duration::from_millis(20)) };

/// Returns the file that this process runs. On Linux it is the same file even if its path was
/// replaced by another version.
pub(super) fn running_executable() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}

/// Names the main thread after the program, instead of after `/proc/self/exe`, for tools that list
/// processes.
pub(super) fn name_main_thread() {
    #[cfg(target_os = "linux")]
    if let Some(name) = std::env::args_os().next().as_deref().and_then(|path| std::path::Path::new(path).file_name())
        && let Ok(name) = std::ffi::CString::new(name.as_encoded_bytes())
    {
        // Best effort: it has no effect on what the process does.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Has the system kill this process when the thread that has started it ends. Returns an error if
/// that has happened already. On systems other than Linux, only the latter.
pub(super) fn die_with_parent(parent: i32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // After the signal was requested, so that a parent that dies in between is noticed.
    check_parent(parent)
}

/// Returns an error if the process that has started this one has ended.
pub(super) fn check_parent(parent: i32) -> io::Result<()> {
    match rustix::process::getppid() {
        Some(pid) if pid.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(io::Error::other("the process that has started this one is gone")),
    }
}

/// Ignores signals. They have handlers instead of being ignored, because programs that this process
/// starts would inherit the latter.
pub(super) fn ignore(signals: &[Signal]) -> io::Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in signals {
        signal_hook::flag::register(signal.as_raw(), ignored.clone())?;
    }
    Ok(())
}

/// Signals that this process handles, until it is dropped. Afterwards it ignores them.
#[derive(Debug)]
pub(super) struct Signals {
    receiver: UnixStream,
    registered: Vec<signal_hook::SigId>,
}

impl Signals {
    pub(super) fn new(signals: &[Signal]) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        let mut handled = Self { receiver, registered: Vec::new() };
        for signal in signals {
            handled.registered.push(signal_hook::low_level::pipe::register(signal.as_raw(), sender.try_clone()?)?);
        }
        Ok(handled)
    }

    /// Returns `true` if a signal has arrived since the last call.
    pub(super) fn take(&self) -> bool {
        (&self.receiver).read(&mut [0; 64]).is_ok_and(|signals| signals > 0)
    }

    /// Readable once a signal has arrived.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.registered.drain(..).for_each(|id| _ = signal_hook::low_level::unregister(id));
    }
}

/// Has the system keep the exit statuses of children until they are reaped. It discards them while
/// SIGCHLD is ignored, which a program may inherit from the one that has started it.
///
/// Only on Linux, and only if the signal is ignored: a handler interrupts system calls of the
/// program, such as reads from sockets with a timeout.
pub(super) fn keep_exit_statuses() -> io::Result<()> {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    if ignored & (1 << (Signal::CHILD.as_raw() - 1)) != 0 { ignore(&[Signal::CHILD]) } else { Ok(()) }
}

/// Ends this process without exit handlers.
pub(super) fn kill_self() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

/// Ends this process without exit handlers, and the process group if this process leads it.
pub(super) fn kill_own_group() -> ! {
    let pid = rustix::process::getpid();
    if rustix::process::getpgrp() == pid {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    kill_self()
}

/// Kills a process group and its leader, which may have left it. To be called before the leader is
/// reaped: until then, its number is not used again.
pub(super) fn kill_group(leader: &Child) {
    let pid = Pid::from_child(leader);
    // These fail if the processes have ended.
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

/// State of a child of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChildState {
    Running,
    /// It has ended and is not reaped.
    Ended,
    /// Its number may be that of another process.
    Reaped,
}

/// Returns the state of a child, without reaping it.
pub(super) fn child_state(child: &Child) -> ChildState {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let id = || rustix::process::waitid(WaitId::Pid(Pid::from_child(child)), options);
    match retry_on_intr(id) {
        Ok(None) => ChildState::Running,
        Ok(Some(_)) => ChildState::Ended,
        // There is no such child.
        Err(_) => ChildState::Reaped,
    }
}

/// A file descriptor that becomes readable when a process ends, if the system has such.
pub(super) fn exit_descriptor(child: &Child) -> io::Result<Option<OwnedFd>> {
    #[cfg(target_os = "linux")]
    return Ok(Some(rustix::process::pidfd_open(Pid::from_child(child), rustix::process::PidfdFlags::empty())?));
    #[cfg(not(target_os = "linux"))]
    {
        let _ = child;
        Ok(None)
    }
}

/// Writes to a socket without raising SIGPIPE if its other end is closed: a program may have
/// restored the effect of the signal, which ends the program.
pub(super) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| rustix::net::send(&socket, bytes, SEND_FLAGS))?)
}

#[cfg(target_os = "linux")]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;
#[cfg(not(target_os = "linux"))]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Descriptors that are received are closed when another program is executed, from the beginning.
#[cfg(target_os = "linux")]
pub(super) const RECEIVE_FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
pub(super) const RECEIVE_FLAGS: RecvFlags = RecvFlags::empty();

/// Makes reads and writes return instead of waiting.
pub(super) fn set_nonblocking(descriptor: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(descriptor, true)?)
}

/// Descriptors that a thread waits for.
#[derive(Default)]
pub(super) struct PollSet<'a>(Vec<PollFd<'a>>);

impl<'a> PollSet<'a> {
    /// Waits until the descriptor is readable, or closed by the other side. Returns its index.
    pub(super) fn readable(&mut self, descriptor: BorrowedFd<'a>) -> usize {
        self.add(descriptor, PollFlags::IN)
    }

    /// Waits until the descriptor is readable, closed, or accepts bytes.
    pub(super) fn readable_or_writable(&mut self, descriptor: BorrowedFd<'a>) -> usize {
        self.add(descriptor, PollFlags::IN | PollFlags::OUT)
    }

    fn add(&mut self, descriptor: BorrowedFd<'a>, events: PollFlags) -> usize {
        self.0.push(PollFd::from_borrowed_fd(descriptor, events));
        self.0.len() - 1
    }

    /// Waits up to `timeout`; forever without one.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        // Rounded up, so that the thread does not wake just before its time. Timeouts that the
        // system cannot represent are shortened: the caller looks at the clock.
        let timeout = timeout.map(|timeout| timeout.min(Duration::from_secs(3600)) + Duration::from_micros(100));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Interrupted by a signal, it reports nothing, and the caller waits again.
        if rustix::event::poll(&mut self.0, timeout.as_ref()).is_err() {
            self.0.iter_mut().for_each(PollFd::clear_revents);
        }
    }

    /// Returns `true` if something has happened to the descriptor at `index`.
    pub(super) fn is_ready(&self, index: usize) -> bool {
        !self.0[index].revents().is_empty()
    }
}

/// Returns the resident memory of a process and its descendants, in bytes, or `None` if it has
/// ended or the system does not tell.
pub(super) fn resident_memory(pid: u32) -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let mut total = resident_pages(pid)?;
    // Descendants that have lost their parent are not found.
    let mut unseen = children(pid);
    let mut visits = 0;
    while let Some(pid) = unseen.pop().filter(|_| visits < MAX_DESCENDANTS) {
        visits += 1;
        total += resident_pages(pid).unwrap_or(0);
        unseen.extend(children(pid));
    }
    Some(total * rustix::param::page_size() as u64)
}

/// Most descendants of a process whose memory is added up, so that a sample is cheap.
const MAX_DESCENDANTS: usize = 64;

/// The second field of `/proc/pid/statm`: `proc_pid_statm(5)`.
fn resident_pages(pid: u32) -> Option<u64> {
    read_to_string(&format!("/proc/{pid}/statm"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Returns the children that the main thread and the thread of the work have started.
/// `/proc/pid/task/tid/children` lists those of one thread.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let paths = threads.flatten().take(MAX_DESCENDANTS).map(|thread| thread.path().join("children"));
    let lists = paths.filter_map(|path| std::fs::read_to_string(path).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn read_to_string(path: &str) -> Option<String> {
    io::read_to_string(File::open(path).ok()?).ok()
}
