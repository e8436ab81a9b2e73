//! What the operating system has to do for the measurement. The only file with `unsafe` in it: no crate here wraps these.
#![allow(unsafe_code)]

use std::fmt;

/// How many descriptors the file table gets room for.
#[cfg(unix)]
const DESCRIPTORS: libc::rlim_t = 16_000;

/// How urgent the system takes the generator to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    Nice,
    Normal,
    RealTime,
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nice => "nice -20 (no permission for real time)",
            Self::Normal => "normal priority (no permission for more): expect lateness",
            Self::RealTime => "real-time priority",
        })
    }
}

/// Makes room for many descriptors, and returns for how many.
///
/// Call it before any thread starts. When the file table of a process with threads grows (at 64, 128, 256 and so on), the
/// kernel waits for all cores (`synchronize_rcu`), which on busy ones stalls `accept` for 1 to 4 s.
#[cfg(unix)]
pub(crate) fn grow_file_table() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid, exclusive place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 256; // the least that any system gives
    }
    let raised = libc::rlimit { rlim_cur: DESCRIPTORS.min(limit.rlim_max), ..limit };
    // SAFETY: `raised` is initialised and only read.
    if limit.rlim_cur < raised.rlim_cur && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    let highest = libc::c_int::try_from(limit.rlim_cur.min(DESCRIPTORS)).unwrap_or(256) - 1;
    // SAFETY: neither call touches memory of ours. The descriptor closed is the one just made; nobody else knows it.
    unsafe {
        let duplicate = libc::fcntl(0, libc::F_DUPFD, highest);
        if duplicate >= 0 {
            libc::close(duplicate);
        }
    }
    usize::try_from(highest).unwrap_or(255) + 1
}

#[cfg(not(unix))]
pub(crate) fn grow_file_table() -> usize {
    4096
}

/// Puts the calling thread before all ordinary ones; threads and processes it starts are ordinary again.
///
/// The generator stands for other machines: without this it waits for the very cores whose load it measures.
#[cfg(target_os = "linux")]
pub(crate) fn raise_priority() -> Priority {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` is initialised and only read. 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } == 0 {
        return Priority::RealTime;
    }
    // SAFETY: the call touches no memory of ours. 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } == 0 { Priority::Nice } else { Priority::Normal }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn raise_priority() -> Priority {
    Priority::Normal
}
