//! A run that never ends. With `unsafe`: no crate here wraps this.
#![allow(unsafe_code)]

/// Ends this process when so many seconds have passed, by a signal: a thread that waits for it would be one thread more.
#[cfg(unix)]
pub(crate) fn end_after(seconds: u32) {
    // SAFETY: the call touches no memory of ours, and nobody else here uses the alarm.
    unsafe { libc::alarm(seconds) };
}

#[cfg(not(unix))]
pub(crate) fn end_after(_: u32) {}
