//! What is behind a connection's lock.

use std::{collections::HashMap, mem, sync::Arc};

use super::{Response, here::Here};
use crate::flush::{frames::StreamId, outbound::Outbound};

/// Who is to be told once the lock is released.
pub(super) type Fates = Vec<(Arc<dyn Response>, Fate)>;

/// What became of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    Flushed { body_bytes: Option<u64> },
    GaveUp,
    Lost,
    Unmapped,
}

/// A stream whose request is about to be handed over.
pub(super) struct Opened {
    /// `None` if it is not followed.
    pub(super) stream: Option<StreamId>,
    /// Who reads, and hands over in the same poll.
    pub(super) reader: Here,
}

#[derive(Default)]
pub(super) struct State {
    /// HTTP/2: for which stream the gate is closed. Set by the transport; taken by the service, or by the transport when the
    /// service was not called.
    pub(super) opened: Option<Opened>,
    pub(super) outbound: Outbound,
    /// HTTP/2: who is to be told of a stream. Each of these streams is followed by `outbound`, and the other way round all that
    /// are followed leave with the stream's end.
    begun: HashMap<StreamId, Arc<dyn Response>>,
    /// HTTP/1: whose bodies have ended, in that order; they wait for the flush.
    pub(super) ended: Vec<Arc<dyn Response>>,
    /// The connection is no more. Set once.
    pub(super) lost: bool,
    /// The server's bytes were not understood, so no response can be followed. Set once.
    pub(super) gave_up: bool,
    /// HTTP/2: the streams of new requests are no longer known. Set once. Streams that were mapped
    /// before are still followed, because the server's bytes and the end of the connection decide
    /// about them.
    pub(super) stopped_mapping: bool,
}

impl State {
    /// How many the next flush will flush.
    pub(super) fn awaiting(&self) -> usize {
        self.ended.len() + self.outbound.ended()
    }

    /// Remembers who is to be told of a stream; or says what is to be told at once.
    pub(super) fn begin<R: Response + 'static>(&mut self, stream: Option<StreamId>, response: &Arc<R>) -> Option<Fate> {
        let fate = match stream {
            _ if self.gave_up => Fate::GaveUp,
            None if self.stopped_mapping => Fate::GaveUp,
            None => Fate::Unmapped,
            Some(stream) if self.outbound.follows(stream) => {
                self.begun.insert(stream, Arc::clone(response) as Arc<dyn Response>);
                return None;
            }
            // It was followed when it was taken, and was not answered since: it was reset, or all is lost.
            Some(_) => Fate::Lost,
        };
        Some(fate)
    }

    /// Follows a stream no more.
    pub(super) fn close(&mut self, stream: StreamId, fate: Fate, fates: &mut Fates) {
        self.outbound.close(stream);
        self.decide(stream, fate, fates);
    }

    /// Whoever waits for a stream, which is followed no more, is to be told this.
    pub(super) fn decide(&mut self, stream: StreamId, fate: Fate, fates: &mut Fates) {
        fates.extend(self.begun.remove(&stream).map(|response| (response, fate)));
    }

    /// The flush that found so many HTTP/1 responses waiting when it was called has succeeded.
    pub(super) fn flushed(&mut self, waited: usize, fates: &mut Fates) {
        let waited = waited.min(self.ended.len());
        fates.extend(self.ended.drain(..waited).map(|response| (response, Fate::Flushed { body_bytes: None })));
        for (stream, body_bytes) in self.outbound.flushed() {
            let fate = Fate::Flushed { body_bytes: Some(body_bytes) };
            fates.extend(self.begun.remove(&stream).map(|response| (response, fate)));
        }
    }

    /// Ends tracking: the server's bytes say nothing about any response from here on.
    pub(super) fn give_up(&mut self, fates: &mut Fates) {
        self.gave_up = true;
        fates.extend(mem::take(&mut self.ended).into_iter().map(|response| (response, Fate::GaveUp)));
        self.close_all(Fate::GaveUp, fates);
    }

    /// Decides the first `waited` HTTP/1 responses: their heads will never be written.
    pub(super) fn unwritten(&mut self, waited: usize, fates: &mut Fates) {
        let waited = waited.min(self.ended.len());
        fates.extend(self.ended.drain(..waited).map(|response| (response, Fate::Lost)));
    }

    /// The connection is no more.
    pub(super) fn lose(&mut self, fates: &mut Fates) {
        self.lost = true;
        fates.extend(mem::take(&mut self.ended).into_iter().map(|response| (response, Fate::Lost)));
        self.close_all(Fate::Lost, fates);
    }

    fn close_all(&mut self, fate: Fate, fates: &mut Fates) {
        self.outbound = Outbound::default();
        fates.extend(mem::take(&mut self.begun).into_values().map(|response| (response, fate)));
    }
}
