//! What the transport tells its connection. All of it happens behind the transport's `&mut`, one after the other.

use std::io::IoSlice;

use super::{
    Connection, Protocol,
    here::Here,
    state::{Fate, Opened, State},
};
use crate::{
    flush::{frames::StreamId, stats::count},
    sync::{Ordering, lock},
};

/// A flush that is about to be asked of the transport: how many responses wait for it.
#[must_use]
pub(in crate::flush) struct Flush {
    waiting: usize,
}

impl Flush {
    /// Whether there is anybody to tell. Nobody: then the flush costs no more than it took to ask.
    pub(in crate::flush) fn is_awaited(&self) -> bool {
        self.waiting > 0
    }
}

impl Connection {
    /// The first bytes have decided, or the client went away before they did. For good.
    pub(in crate::flush) fn decided(&self, protocol: Protocol) {
        self.protocol.store(protocol as u8, Ordering::Release);
    }

    /// A header block that opens a stream was delivered to its end. If the stream cannot be followed its response is unmapped;
    /// the gate is for it all the same, or the next stream would be taken for it.
    pub(in crate::flush) fn opened(&self, stream: StreamId) {
        let mut state = lock(&self.state);
        let followed = !state.lost && !state.gave_up && !state.stopped_mapping && state.outbound.open(stream);
        state.opened = Some(Opened { stream: followed.then_some(stream), reader: Here::now() });
    }

    /// As if too many were followed already.
    #[cfg(test)]
    pub(in crate::flush) fn opened_unfollowed(&self) {
        if let Some(opened) = &mut lock(&self.state).opened {
            opened.stream = None;
        }
    }

    /// Whether the service has not taken the stream that was opened last.
    pub(in crate::flush) fn is_untaken(&self) -> bool {
        lock(&self.state).opened.is_some()
    }

    /// The service had its chance: if it has not taken the stream, that one was not passed on to it.
    pub(in crate::flush) fn take_back(&self) {
        self.change(|state, _| {
            if let Some(Opened { stream, .. }) = state.opened.take() {
                count(&self.counters.undelivered);
                if let Some(stream) = stream {
                    state.outbound.close(stream);
                }
            }
        });
    }

    /// The client reset a stream, which may be none of ours.
    pub(in crate::flush) fn reset(&self, stream: StreamId) {
        self.change(|state, fates| state.close(stream, Fate::Lost, fates));
    }

    /// Stops the mapping of requests to streams. The responses to later requests are only handed
    /// over; those whose stream is known are still followed.
    pub(in crate::flush) fn stop_mapping(&self) {
        lock(&self.state).stopped_mapping = true;
    }

    /// The transport accepted the first `count` bytes of these slices. On HTTP/1 they do not matter; before it is decided they
    /// may, for h2 sends its settings before it reads.
    pub(in crate::flush) fn accepted(&self, slices: &[IoSlice<'_>], count: usize) {
        if self.protocol() == Protocol::Http1 {
            return;
        }
        self.change(|state, fates| {
            if state.lost || state.gave_up {
                return;
            }
            let mut reset = Vec::new();
            state.outbound.accepted_vectored(slices, count, |stream, _| reset.push(stream));
            for stream in reset {
                state.decide(stream, Fate::Lost, fates);
            }
            if state.outbound.gave_up() {
                state.give_up(fates);
            }
        });
    }

    /// To be called before each poll of the transport's flush, so that nobody is told by a flush that began before
    /// there was all to flush.
    pub(in crate::flush) fn before_flush(&self) -> Flush {
        Flush { waiting: self.awaiting.load(Ordering::Acquire) }
    }

    /// That poll has succeeded, and flushed whoever waited.
    pub(in crate::flush) fn flushed(&self, flush: Flush) {
        if flush.is_awaited() {
            self.change(|state, fates| state.flushed(flush.waiting, fates));
        }
    }

    /// Returns `true` while an HTTP/1 response has a head and a body that is not dropped.
    pub(in crate::flush) fn has_open_body(&self) -> bool {
        self.open_bodies.load(Ordering::Acquire) > 0
    }

    /// A flush of bytes that an application wrote after it took the connection over from HTTP/1.
    /// The responses that waited for it have no head on the wire, and hyper no longer holds one.
    pub(in crate::flush) fn flushed_unwritten(&self, flush: Flush) {
        self.change(|state, fates| state.unwritten(flush.waiting, fates));
    }

    /// Ends tracking on HTTP/1: the transport accepted bytes that belong to no response that is
    /// known.
    pub(in crate::flush) fn give_up(&self) {
        self.change(State::give_up);
    }

    /// The transport failed, or is gone.
    pub(in crate::flush) fn lost(&self) {
        self.change(State::lose);
    }
}
