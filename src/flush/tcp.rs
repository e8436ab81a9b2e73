//! How far the peer of a TCP connection has acknowledged what was written to its socket.
//!
//! Linux only. Other systems, and sockets of other protocols, have no [`Progress`].

use std::{fmt, time::Duration};

#[cfg(target_os = "linux")]
use crate::panic::{catch_unwind, drop_payload};

/// A snapshot of a TCP connection. Positions are numbers of bytes since the connection was
/// established; that of a SYN or FIN may be included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// The position up to which the peer has acknowledged. It never decreases, and a reset does not
    /// change it.
    pub(super) acknowledged: u64,
    /// The position behind the last byte that was written to the socket. It may be too high by what
    /// was acknowledged while it was read, and is never too low.
    pub(super) written: u64,
    /// The smoothed round-trip time.
    pub(super) round_trip: Duration,
    /// The connection has ended, so the peer will acknowledge nothing more.
    pub(super) is_closed: bool,
}

/// Finds the socket below a transport `T`.
pub(super) struct SocketOf<T> {
    #[cfg(target_os = "linux")]
    find: Option<FindSocket<T>>,
    #[cfg(not(target_os = "linux"))]
    _transport: std::marker::PhantomData<fn(&T)>,
}

/// Returns the socket below a transport, or `None` if it has none.
#[cfg(target_os = "linux")]
pub(crate) type FindSocket<T> = fn(&T) -> Option<std::os::fd::BorrowedFd<'_>>;

impl<T> SocketOf<T> {
    pub(super) fn unknown() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            find: None,
            #[cfg(not(target_os = "linux"))]
            _transport: std::marker::PhantomData,
        }
    }
}

#[cfg(target_os = "linux")]
impl<T> SocketOf<T> {
    pub(super) fn new(find: FindSocket<T>) -> Self {
        Self { find: Some(find) }
    }

    /// Returns `None` if there is no TCP socket.
    pub(super) fn progress(&self, transport: &T) -> Option<Progress> {
        let find = self.find?;
        // User code. If it panics, the responses are flushed and not acknowledged.
        let socket = catch_unwind(|| find(transport)).unwrap_or_else(|payload| {
            drop_payload(payload);
            None
        });
        linux::progress(socket?)
    }
}

#[cfg(not(target_os = "linux"))]
impl<T> SocketOf<T> {
    pub(super) fn progress(&self, _: &T) -> Option<Progress> {
        None
    }
}

impl<T> fmt::Debug for SocketOf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketOf").finish_non_exhaustive()
    }
}

#[cfg(target_os = "linux")]
mod linux {
    // Neither the standard library nor rustix, socket2 or nix reads these values.
    #![allow(unsafe_code)]

    use std::{
        ffi::c_int,
        mem,
        os::fd::{AsRawFd, BorrowedFd},
        time::Duration,
    };

    use super::Progress;

    /// The length of `struct tcp_info` up to `tcpi_bytes_acked`, which it has since Linux 4.1. The
    /// structure only grows at its end (`include/uapi/linux/tcp.h`), so the offsets are part of the
    /// ABI. They are the same on all architectures, because each field is aligned to its size.
    const TCP_INFO_LENGTH: usize = 128;
    /// `tcpi_state`, a byte.
    const STATE: usize = 0;
    /// `tcpi_rtt`, in microseconds.
    const ROUND_TRIP: usize = 68;
    /// `tcpi_bytes_acked`, RFC 4898 `tcpEStatsAppHCThruOctetsAcked`.
    const BYTES_ACKED: usize = 120;

    /// `TCP_CLOSE` (`include/net/tcp_states.h`).
    const CLOSED: u8 = 7;

    /// The number of attempts to read both positions without an acknowledgement in between.
    const ATTEMPTS: usize = 4;

    /// The socket must not be written to meanwhile.
    pub(super) fn progress(socket: BorrowedFd<'_>) -> Option<Progress> {
        // The values of a Multipath TCP socket are those of different layers.
        let protocol = option::<{ size_of::<c_int>() }>(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
        if c_int::from_ne_bytes(protocol) != libc::IPPROTO_TCP {
            return None;
        }
        let mut before = tcp_info(socket)?;
        for _ in 0..ATTEMPTS {
            let unacknowledged = unacknowledged(socket)?;
            let after = tcp_info(socket)?;
            let is_consistent = before.acknowledged == after.acknowledged;
            before = Progress { written: after.acknowledged.checked_add(unacknowledged)?, ..after };
            if is_consistent {
                break;
            }
        }
        Some(before)
    }

    /// Returns the state of the connection, with `written` as `acknowledged`.
    fn tcp_info(socket: BorrowedFd<'_>) -> Option<Progress> {
        let info = option::<TCP_INFO_LENGTH>(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let acknowledged = u64::from_ne_bytes(info[BYTES_ACKED..].try_into().ok()?);
        let round_trip = u32::from_ne_bytes(info[ROUND_TRIP..ROUND_TRIP + 4].try_into().ok()?);
        Some(Progress {
            acknowledged,
            written: acknowledged,
            round_trip: Duration::from_micros(round_trip.into()),
            is_closed: info[STATE] == CLOSED,
        })
    }

    /// Returns the first `LENGTH` bytes of the value of a socket option, or `None` if it is shorter
    /// or the socket does not have it.
    fn option<const LENGTH: usize>(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> Option<[u8; LENGTH]> {
        let mut value = [0; LENGTH];
        let mut length = libc::socklen_t::try_from(LENGTH).ok()?;
        // SAFETY: the descriptor is open while it is borrowed. The kernel writes at most `length`
        // bytes to `value`, which has as many, and the length to `length`. It keeps neither
        // pointer.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) };
        (result == 0 && length as usize == LENGTH).then_some(value)
    }

    /// Returns the number of bytes that were written and not acknowledged: `SIOCOUTQ`, which is the
    /// same number as `TIOCOUTQ` (`include/uapi/linux/sockios.h`).
    fn unacknowledged(socket: BorrowedFd<'_>) -> Option<u64> {
        let mut bytes: c_int = 0;
        // SAFETY: the descriptor is open while it is borrowed. The kernel writes one `int` to
        // `bytes`, and does not keep the pointer.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        (result == 0).then_some(())?;
        u64::try_from(bytes).ok()
    }

    const _: () = assert!(mem::size_of::<c_int>() == 4 && BYTES_ACKED + 8 == TCP_INFO_LENGTH);
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
