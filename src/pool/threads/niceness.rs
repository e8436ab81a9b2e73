use std::{io, ops::RangeInclusive};

/// What setpriority(2) takes on Linux; it would silently clamp the rest.
pub(super) const RANGE: RangeInclusive<i32> = -20..=19;

/// Gives the calling thread that nice value, and no other thread.
///
/// POSIX has one nice value for all threads of a process. On Linux each thread has its own (setpriority(2), "C library/kernel
/// differences"), and 0 for the process id means the thread that asks.
#[cfg(target_os = "linux")]
pub(super) fn set(niceness: i32) -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, niceness)?)
}

/// Elsewhere it would be the whole process's.
#[cfg(not(target_os = "linux"))]
pub(super) fn set(_: i32) -> io::Result<()> {
    Ok(())
}
