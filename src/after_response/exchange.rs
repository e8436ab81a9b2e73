//! A request and its response, shared by every component that observes the end of the response.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

#[cfg(feature = "flush")]
use super::settled::SettledExchanges;
use super::{
    Delivery, End, Outcome,
    driver::{Driver, Hook, RegisteredTask},
    guard::AttemptState,
    pending::{Hooks, Pending, SpawnContext},
    progress::{Progress, RequestLine},
};
use crate::sync::{AtomicU8, Mutex, Ordering, fence, get_mut, lock};

/// A request and its response: the registered work, and the state of the response.
///
/// The exchange settles once both sides have finished:
///
/// 1. The server's side finishes when the [`Guard`](super::guard::Guard) is dropped. It leaves its
///    [`Progress`] here.
/// 2. The connection's side finishes when it completes its [`FlushWaiter`]. An untracked exchange
///    has none. A response that is incomplete on the server's side does not wait for it.
///
/// If the body has ended and the client does not take it, the connection gives up with
/// [`FlushOutcome::Stalled`]. That finishes both sides, because hyper keeps a body of which the
/// client takes nothing (`PipeToSendStream` in `hyper/proto/h2/mod.rs`).
///
/// Settling starts the [`Driver`], which runs hooks and tasks in a task of its own. No method runs
/// user code, because the callers are in the middle of I/O.
///
/// A tracked connection refers to the exchange through the waiter. The exchange does not refer to
/// the connection, so there is no reference cycle.
///
/// When a response is flushed, usually only the waiter refers to its exchange, and later only the
/// driver. Then nothing can be registered, and the methods named `unshared` need no locks.
pub(crate) struct Exchange {
    began: Instant,
    is_multiplexed: bool,
    /// `false` if the connection does not report flushes.
    is_tracked: bool,
    acknowledgement: AcknowledgementRequest,
    state: ExchangeState,
    sides: Mutex<Sides>,
    /// A [`FlushOutcome`], encoded; zero before. Written once, before [`FLUSH_KNOWN`] is set. An
    /// incomplete response sets that bit without an outcome.
    flush_outcome: AtomicU64,
    /// Nanoseconds from the request to the end. Written before [`SETTLED`] is set, read afterwards.
    total: AtomicU64,
    /// The first attempt at an inner layer is stored inline, because usually there is only one.
    pub(super) first_attempt: AttemptState,
    /// The handler's call of the layer that owns the response. Used only if it runs on a pool.
    pub(super) own_call: AttemptState,
    pub(super) pending: Mutex<Pending<Hook, Box<RegisteredTask>>>,
}

/// Values that a side leaves for the other one.
#[derive(Default)]
struct Sides {
    /// Written before [`GUARD_DROPPED`] or [`BODY_ENDED`] is set.
    progress: Option<Progress>,
    /// Counts responses whose length on the wire differs from the length of their body. Left by the
    /// connection if it finishes before `progress` is known.
    mismatched: Option<Arc<AtomicU64>>,
}

/// Result of a response on the wire, as a tracked connection reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "constructed by tracked connections"))]
pub(crate) enum FlushOutcome {
    /// The HTTP/2 stream of the response is unknown.
    Unmapped,
    /// The bytes on the connection were not understood.
    GaveUp,
    /// The client did not take the response in time. Its body may not have been dropped.
    Stalled,
    /// The stream was reset or the connection closed before the response was flushed.
    Lost,
    /// The transport accepted the whole response and flushed. `body_bytes` is the length of the
    /// body on the wire; `None` on HTTP/1, where the body is not counted.
    Flushed { body_bytes: Option<u64> },
    /// The response was flushed, and the peer's TCP has acknowledged all of it.
    Acknowledged { body_bytes: Option<u64> },
}

impl FlushOutcome {
    /// Returns a number other than zero from which [`decode`](Self::decode) restores the outcome.
    #[cfg(feature = "flush")]
    fn encode(self) -> u64 {
        match self {
            Self::Unmapped => 1,
            Self::GaveUp => 2,
            Self::Stalled => 3,
            Self::Lost => 4,
            Self::Flushed { body_bytes: None } => 5,
            Self::Flushed { body_bytes: Some(bytes) } => bytes.min(u64::MAX >> 4) << 4 | 6,
            Self::Acknowledged { body_bytes: None } => 7,
            Self::Acknowledged { body_bytes: Some(bytes) } => bytes.min(u64::MAX >> 4) << 4 | 8,
        }
    }

    fn decode(number: u64) -> Option<Self> {
        Some(match number & 15 {
            1 => Self::Unmapped,
            2 => Self::GaveUp,
            3 => Self::Stalled,
            4 => Self::Lost,
            5 => Self::Flushed { body_bytes: None },
            6 => Self::Flushed { body_bytes: Some(number >> 4) },
            7 => Self::Acknowledged { body_bytes: None },
            8 => Self::Acknowledged { body_bytes: Some(number >> 4) },
            _ => return None,
        })
    }

    /// Counts the response if its length on the wire differs from the length of its body.
    fn compare_length(self, progress: &Progress, mismatched: &AtomicU64) {
        if let Self::Flushed { body_bytes: Some(on_wire) } | Self::Acknowledged { body_bytes: Some(on_wire) } = self {
            if on_wire != progress.body_bytes() {
                mismatched.fetch_add(1, Relaxed);
            }
        }
    }

    /// Returns `false` if the response may or may not have been flushed.
    fn is_certain(self) -> bool {
        matches!(self, Self::Lost | Self::Flushed { .. } | Self::Acknowledged { .. })
    }
}

/// The connection's side of a tracked exchange. The connection completes it exactly once.
#[cfg(feature = "flush")]
#[derive(Debug)]
#[must_use = "an exchange settles only after its waiter is completed"]
pub(crate) struct FlushWaiter(Arc<Exchange>);

#[cfg(feature = "flush")]
impl FlushWaiter {
    /// Returns `true` if the body ended and was complete, so that only the flush is missing.
    ///
    /// On HTTP/1 every byte of the response is in hyper's buffer then, so the next flush of the
    /// transport covers it.
    pub(crate) fn awaits_flush(&self) -> bool {
        self.0.state.awaits_flush()
    }

    /// Returns `true` if the body ended and was complete, but may not have been dropped. Then
    /// [`FlushOutcome::Stalled`] is allowed.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.state.has_ended()
    }

    /// Returns `true` if the response has a head and its body was not dropped.
    ///
    /// hyper encodes a head as soon as it has it and flushes only an empty buffer, so at each flush
    /// on HTTP/1 the transport has accepted the head.
    pub(crate) fn has_open_body(&self) -> bool {
        self.0.state.has_open_body()
    }

    /// Returns `true` if the exchange no longer needs an outcome, because the response is
    /// incomplete anyway.
    pub(crate) fn is_obsolete(&self) -> bool {
        self.0.state.is_flush_known()
    }

    /// The response was flushed. Returns `true` if it waits for an acknowledgement. It is too late
    /// to request one from now on.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        self.0.acknowledgement.close()
    }

    /// Returns `true` if the response on the wire ends with its head, because it opens a tunnel.
    pub(crate) fn ends_with_head(&self) -> bool {
        self.0.state.ends_with_head()
    }

    /// Reports the outcome. If the exchange settles and work is due, adds it to `settled`.
    /// `mismatched` counts responses whose length on the wire differs from the length of their
    /// body.
    ///
    /// Must not be called under a lock, because dropping the last reference to the exchange drops
    /// hooks and tasks of users.
    pub(crate) fn complete(
        mut self,
        outcome: FlushOutcome,
        mismatched: &Arc<AtomicU64>,
        settled: &mut SettledExchanges<'_>,
    ) {
        let context = match Arc::get_mut(&mut self.0) {
            Some(exchange) => exchange.complete_flush_unshared(outcome, mismatched, settled),
            None => self.0.complete_flush(outcome, mismatched, settled).then(|| self.0.context()).flatten(),
        };
        if let Some(context) = context {
            settled.push(self.0, context);
        }
    }
}

/// Request extension that holds the exchange created by a tracked connection. The outermost layer
/// adopts it.
#[derive(Debug, Clone)]
pub(crate) struct Tracked(pub(crate) Arc<Exchange>);

impl Exchange {
    /// Creates an exchange on a connection that does not report flushes.
    pub(super) fn untracked(request: RequestLine) -> Arc<Self> {
        Arc::new(Self::new(request, Instant::now(), false, false))
    }

    /// Creates an exchange that began at this time on a tracked connection, and the waiter that the
    /// connection completes. `has_socket` is `true` if the connection may find out what its peer
    /// has acknowledged.
    #[cfg(feature = "flush")]
    pub(crate) fn tracked(request: RequestLine, began: Instant, has_socket: bool) -> (Arc<Self>, FlushWaiter) {
        let exchange = Arc::new(Self::new(request, began, true, has_socket));
        (exchange.clone(), FlushWaiter(exchange))
    }

    fn new(request: RequestLine, began: Instant, is_tracked: bool, has_socket: bool) -> Self {
        Self {
            began,
            is_multiplexed: request.is_multiplexed(),
            is_tracked,
            acknowledgement: AcknowledgementRequest::new(has_socket),
            state: ExchangeState::new(is_tracked),
            sides: Mutex::new(Sides::default()),
            flush_outcome: AtomicU64::new(0),
            total: AtomicU64::new(0),
            first_attempt: AttemptState::default(),
            own_call: AttemptState::default(),
            pending: Mutex::new(Pending::default()),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns `true` if, as far as is known, the connection will report when this response is
    /// flushed.
    pub(super) fn is_tracked(&self) -> bool {
        self.is_tracked && self.flush_outcome().is_none_or(FlushOutcome::is_certain)
    }

    /// Returns `true` if, as far as is known, the outcome can be
    /// [`Acknowledged`](Delivery::Acknowledged): [`request_acknowledgement`] would succeed, or the
    /// peer has acknowledged the response already.
    ///
    /// [`request_acknowledgement`]: Self::request_acknowledgement
    pub(super) fn can_be_acknowledged(&self) -> bool {
        match self.flush_outcome() {
            None => self.acknowledgement.is_possible() && !self.state.is_flush_known(),
            Some(outcome) => matches!(outcome, FlushOutcome::Acknowledged { .. }),
        }
    }

    /// Lets the connection's side finish only when the peer has acknowledged the response, or the
    /// connection has given up on that. Returns `false`, without effect, if the connection cannot
    /// find out, or the response was flushed before the first request or has ended in another way.
    pub(super) fn request_acknowledgement(&self) -> bool {
        !self.state.is_flush_known() && self.acknowledgement.request()
    }

    /// Returns `true` if a hook or task was registered.
    pub(super) fn has_registrations(&self) -> bool {
        self.state.has_registrations()
    }

    /// Returns `true` if nothing was registered and nothing can be: only the guard and the waiter
    /// refer to the exchange. Then the times of the response are not needed. Called by the guard.
    pub(super) fn is_unobserved(self: &Arc<Self>) -> bool {
        let references = Arc::strong_count(self);
        // A handle that was dropped has registered before.
        fence(Ordering::Acquire);
        let bits = self.state.0.load(Ordering::Relaxed);
        // The waiter sets `FLUSH_KNOWN` before it is dropped.
        let expected = if bits & FLUSH_KNOWN == 0 { 2 } else { 1 };
        references == expected && bits & HAS_REGISTRATIONS == 0
    }

    /// Records that the response has a final head. Must be called before the response is returned
    /// to the HTTP implementation.
    pub(super) fn set_head(&self, opens_tunnel: bool) {
        // Only a tracked connection asks, on HTTP/2 only for tunnels.
        if self.is_tracked && (opens_tunnel || !self.is_multiplexed) {
            self.state.set(if opens_tunnel { HAS_HEAD | ENDS_WITH_HEAD } else { HAS_HEAD });
        }
    }

    /// The body of a tracked response has ended, and was not dropped yet. Called at most once, only
    /// on HTTP/2.
    pub(super) fn end_body(&self, progress: Progress) {
        let mut sides = lock(&self.sides);
        let awaits_flush = self.awaits_flush(&progress);
        self.set_progress(&mut sides, progress);
        if awaits_flush {
            self.state.end_body();
        }
    }

    /// Finishes the server's side. Called once, by the guard's drop. `progress` is `None` after
    /// [`end_body`](Self::end_body).
    pub(super) fn finish(self: &Arc<Self>, progress: Option<Progress>) {
        let settles = match progress {
            Some(progress) => {
                let mut sides = lock(&self.sides);
                let awaits_flush = self.awaits_flush(&progress);
                self.set_progress(&mut sides, progress);
                self.state.drop_guard(awaits_flush)
            }
            None => self.state.drop_guard(self.state.has_body_ended()),
        };
        if settles && !self.is_unobserved() && self.settle(Instant::now()) {
            self.start_driver();
        }
    }

    fn set_progress(&self, sides: &mut Sides, progress: Progress) {
        if let (Some(mismatched), Some(outcome)) = (sides.mismatched.take(), self.flush_outcome()) {
            outcome.compare_length(&progress, &mismatched);
        }
        sides.progress = Some(progress);
    }

    fn awaits_flush(&self, progress: &Progress) -> bool {
        match progress.end() {
            End::Complete => true,
            // HTTP/2 sends such a response to its end; HTTP/1 closes the connection instead.
            End::BodyTooShort => self.is_multiplexed,
            _ => false,
        }
    }

    /// Finishes the connection's side. Returns `true` if the caller must start the driver.
    #[cfg(feature = "flush")]
    fn complete_flush(
        &self,
        outcome: FlushOutcome,
        mismatched: &Arc<AtomicU64>,
        settled: &mut SettledExchanges<'_>,
    ) -> bool {
        let settles = {
            let mut sides = lock(&self.sides);
            self.flush_outcome.store(outcome.encode(), Relaxed);
            match &sides.progress {
                _ if self.state.is_flush_known() => {} // incomplete anyway
                Some(progress) => outcome.compare_length(progress, mismatched),
                None => sides.mismatched = Some(mismatched.clone()),
            }
            match outcome {
                FlushOutcome::Stalled => self.state.give_up(),
                _ => self.state.set_flush_known(),
            }
        };
        settles && self.settle(settled.now())
    }

    /// Like [`complete_flush`](Self::complete_flush), if only the waiter refers to the exchange, so
    /// that the guard was dropped. Returns the context of the driver that the caller must start.
    #[cfg(feature = "flush")]
    fn complete_flush_unshared(
        &mut self,
        outcome: FlushOutcome,
        mismatched: &AtomicU64,
        settled: &mut SettledExchanges<'_>,
    ) -> Option<SpawnContext> {
        if self.state.is_flush_known() {
            return None; // settled without the connection
        }
        *self.flush_outcome.get_mut() = outcome.encode();
        if let Some(progress) = &get_mut(&mut self.sides).progress {
            outcome.compare_length(progress, mismatched);
        }
        self.state.settle_unshared();
        let context = get_mut(&mut self.pending).take_context()?;
        *self.total.get_mut() = self.total_at(settled.now());
        Some(context)
    }

    /// Returns `true` if the caller must start the driver.
    fn settle(&self, now: Instant) -> bool {
        self.total.store(self.total_at(now), Relaxed);
        self.state.settle()
    }

    fn total_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns runtime and background of the first registration.
    fn context(&self) -> Option<SpawnContext> {
        lock(&self.pending).context().cloned()
    }

    /// Starts the driver, unless nothing was registered.
    fn start_driver(self: &Arc<Self>) {
        if let Some(context) = self.context() {
            Driver::start(self.clone(), context);
        }
    }

    /// Calls `add` to add a registration. If the exchange has settled, the driver starts at once.
    pub(super) fn register(self: &Arc<Self>, add: impl FnOnce(&mut Pending<Hook, Box<RegisteredTask>>)) {
        add(&mut lock(&self.pending));
        if self.state.register() {
            self.start_driver();
        }
    }

    /// Starts the driver if the exchange has settled and tasks may wait for the attempt that was
    /// decided. The decision must already be stored.
    pub(super) fn on_decided(self: &Arc<Self>) {
        if self.state.on_decided() {
            self.start_driver();
        }
    }

    fn flush_outcome(&self) -> Option<FlushOutcome> {
        FlushOutcome::decode(self.flush_outcome.load(Relaxed))
    }

    /// Returns how the response ended.
    ///
    /// # Panics
    ///
    /// Panics if the exchange has not settled.
    pub(super) fn outcome(&self) -> Outcome {
        let progress = lock(&self.sides).progress.clone();
        self.outcome_of(progress.expect("an exchange settles after its guard was dropped"))
    }

    /// Takes the outcome and the hooks of a settled exchange to which only its driver refers.
    /// Returns `None`, and takes nothing, if the exchange has tasks.
    pub(super) fn take_unshared(&mut self) -> Option<(Outcome, Hooks<Hook>)> {
        let hooks = get_mut(&mut self.pending).take_only_hooks()?;
        let progress = get_mut(&mut self.sides).progress.take();
        let outcome = self.outcome_of(progress.expect("an exchange settles after its guard was dropped"));
        Some((outcome, hooks))
    }

    fn outcome_of(&self, progress: Progress) -> Outcome {
        let is_certain = |body_bytes: Option<u64>| {
            body_bytes.is_none_or(|on_wire| on_wire == progress.body_bytes()) && !progress.is_doubtful()
        };
        let end = progress.end();
        let (end, delivery) = match end {
            End::BodyTooShort if !self.is_multiplexed => (end, Delivery::NotDelivered),
            End::Complete | End::BodyTooShort => match self.flush_outcome() {
                Some(FlushOutcome::Lost) => (End::Aborted, Delivery::NotDelivered),
                Some(FlushOutcome::Flushed { body_bytes }) if is_certain(body_bytes) => (end, Delivery::Flushed),
                Some(FlushOutcome::Acknowledged { body_bytes }) if is_certain(body_bytes) => {
                    (end, Delivery::Acknowledged)
                }
                _ => (end, Delivery::HandedOver),
            },
            _ => (end, Delivery::NotDelivered),
        };
        progress.into_outcome(end, delivery, Duration::from_nanos(self.total.load(Relaxed)))
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("state", &self.state)
            .field("is_tracked", &self.is_tracked())
            .finish_non_exhaustive()
    }
}

/// The guard was dropped: the server's side has finished. Set once. Also set if the connection gave
/// up on a response whose body has ended.
const GUARD_DROPPED: u8 = 1;
/// The connection's side has finished, or the exchange does not wait for it. Set by the waiter, or
/// by the guard of an incomplete response.
const FLUSH_KNOWN: u8 = 1 << 1;
/// Both sides have finished, so the outcome can be read. Set once, by the side that finishes last.
const SETTLED: u8 = 1 << 2;
/// A hook or task was registered.
const HAS_REGISTRATIONS: u8 = 1 << 3;
/// The handler returned a final response. Set before the HTTP implementation has the head. On
/// HTTP/2 only together with [`ENDS_WITH_HEAD`].
const HAS_HEAD: u8 = 1 << 4;
/// The response opens a tunnel, so its head is its end on the wire. Set together with [`HAS_HEAD`].
const ENDS_WITH_HEAD: u8 = 1 << 5;

/// The body of a complete response has ended, and [`Sides::progress`] is known.
const BODY_ENDED: u8 = 1 << 6;

/// The life of an exchange. Bits are set and never cleared.
///
/// Invariants:
///
/// * Of the calls that set [`GUARD_DROPPED`] and [`FLUSH_KNOWN`], exactly the one after which both
///   are set returns `true`, and its caller settles. It sees everything that the others wrote
///   before.
/// * If [`SETTLED`] and [`HAS_REGISTRATIONS`] are both set, at least one of the two calls returned
///   `true`, and its caller starts the driver. Both may: [`Pending`] lets only one of them run what
///   is registered.
#[derive(Debug)]
struct ExchangeState(AtomicU8);

impl ExchangeState {
    fn new(is_tracked: bool) -> Self {
        Self(AtomicU8::new(if is_tracked { 0 } else { FLUSH_KNOWN }))
    }

    /// Records that the guard was dropped. Returns `true` if the caller must settle the exchange.
    /// Unless `awaits_flush`, the exchange does not wait for the connection's side.
    fn drop_guard(&self, awaits_flush: bool) -> bool {
        if awaits_flush {
            self.set(GUARD_DROPPED) & (GUARD_DROPPED | FLUSH_KNOWN) == FLUSH_KNOWN
        } else {
            self.set(GUARD_DROPPED | FLUSH_KNOWN) & GUARD_DROPPED == 0
        }
    }

    /// Records that the connection's side has finished. Returns `true` if the caller must settle
    /// the exchange.
    #[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "called by tracked connections"))]
    fn set_flush_known(&self) -> bool {
        self.set(FLUSH_KNOWN) & (GUARD_DROPPED | FLUSH_KNOWN) == GUARD_DROPPED
    }

    /// Records that the body of a complete response has ended.
    fn end_body(&self) {
        self.set(BODY_ENDED);
    }

    fn has_body_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) & BODY_ENDED != 0
    }

    /// Records that the connection has given up on a response that [has
    /// ended](Self::has_ended). Returns `true` if the caller must settle the exchange.
    #[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "called by tracked connections"))]
    fn give_up(&self) -> bool {
        self.set(GUARD_DROPPED | FLUSH_KNOWN) & FLUSH_KNOWN == 0
    }

    /// Records that the exchange has settled. Returns `true` if the caller must start the driver.
    fn settle(&self) -> bool {
        self.set(SETTLED) & HAS_REGISTRATIONS != 0
    }

    /// Records that both sides have finished. Only one thread refers to the exchange.
    #[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "called by tracked connections"))]
    fn settle_unshared(&mut self) {
        let bits = self.0.load(Ordering::Relaxed);
        self.0.store(bits | GUARD_DROPPED | FLUSH_KNOWN | SETTLED, Ordering::Relaxed);
    }

    /// Records a registration, which must already be in the list. Returns `true` if the caller must
    /// start the driver.
    fn register(&self) -> bool {
        self.set(HAS_REGISTRATIONS) & SETTLED != 0
    }

    /// Records that an attempt was decided. Returns `true` if the caller must start the driver.
    ///
    /// It writes, although it sets no bit, so that it has a place in the order of all writes: if it
    /// precedes [`settle`](Self::settle) and [`register`](Self::register), the driver that they
    /// start sees the decision.
    fn on_decided(&self) -> bool {
        self.set(0) & (SETTLED | HAS_REGISTRATIONS) == SETTLED | HAS_REGISTRATIONS
    }

    fn has_registrations(&self) -> bool {
        self.0.load(Ordering::Relaxed) & HAS_REGISTRATIONS != 0
    }

    fn is_flush_known(&self) -> bool {
        self.0.load(Ordering::Acquire) & FLUSH_KNOWN != 0
    }

    fn set(&self, bits: u8) -> u8 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }
}

#[cfg(feature = "flush")]
impl ExchangeState {
    fn awaits_flush(&self) -> bool {
        self.0.load(Ordering::Acquire) & (GUARD_DROPPED | FLUSH_KNOWN) == GUARD_DROPPED
    }

    fn has_ended(&self) -> bool {
        let bits = self.0.load(Ordering::Acquire);
        bits & (GUARD_DROPPED | BODY_ENDED) != 0 && bits & FLUSH_KNOWN == 0
    }

    fn has_open_body(&self) -> bool {
        self.0.load(Ordering::Acquire) & (GUARD_DROPPED | HAS_HEAD) == HAS_HEAD
    }

    #[cfg(test)]
    fn is_settled(&self) -> bool {
        self.0.load(Ordering::Acquire) & SETTLED != 0
    }

    fn ends_with_head(&self) -> bool {
        self.0.load(Ordering::Acquire) & ENDS_WITH_HEAD != 0
    }
}

/// The connection cannot find out what its peer has acknowledged.
const NO_SOCKET: u8 = 0;
/// An acknowledgement can be requested.
const OPEN: u8 = 1;
/// It was requested before the flush.
const REQUESTED: u8 = 2;
/// The response was flushed before a request.
#[cfg(feature = "flush")]
const CLOSED: u8 = 3;

/// Decides between the first request for an acknowledgement and the flush: the response waits for
/// one exactly if [`request`](Self::request) has returned `true`.
///
/// It leaves [`OPEN`] at most once, and no other state. It publishes no other value, so its order
/// is relaxed.
#[derive(Debug)]
struct AcknowledgementRequest(AtomicU8);

impl AcknowledgementRequest {
    fn new(has_socket: bool) -> Self {
        Self(AtomicU8::new(if has_socket { OPEN } else { NO_SOCKET }))
    }

    fn is_possible(&self) -> bool {
        matches!(self.0.load(Ordering::Relaxed), OPEN | REQUESTED)
    }

    /// Requests an acknowledgement, if it is not too late. Returns `true` if the response waits for
    /// one.
    fn request(&self) -> bool {
        self.leave_open(REQUESTED) == REQUESTED
    }

    /// Records the flush. Returns `true` if the response waits for an acknowledgement.
    #[cfg(feature = "flush")]
    fn close(&self) -> bool {
        self.leave_open(CLOSED) == REQUESTED
    }

    /// Changes the state to `to` if it is [`OPEN`]. Returns the state afterwards.
    fn leave_open(&self, to: u8) -> u8 {
        match self.0.load(Ordering::Relaxed) {
            OPEN => match self.0.compare_exchange(OPEN, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => to,
                Err(other) => other,
            },
            other => other,
        }
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, feature = "flush"))]
pub(crate) mod testing;
