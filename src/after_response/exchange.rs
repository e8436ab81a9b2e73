use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Delivery, End, Outcome,
    attempt::Passed,
    driver::Driver,
    entry::{Hook, Task},
    facts::Facts,
    pending::Pending,
    progress::{Progress, RequestLine},
    wire::{Verdict, Wire},
};
use crate::sync::{Mutex, lock};

/// A request and its response: what is to be run after it, and what is known about its end.
///
/// It is settled once the response's own side has let go of it ([`Exchange::released`]) and, if all of the response went out, the
/// wire has told what became of that ([`Exchange::told`]). Nothing here runs what is not ours: that is the driver's, in a task.
pub(crate) struct Exchange {
    began: Instant,
    is_multiplexed: bool,
    wire: Option<Arc<dyn Wire>>,
    /// The number of its HTTP/2 stream, if the wire knows it.
    stream: Option<u32>,
    facts: Facts,
    /// Set before `RELEASED`.
    ending: OnceLock<Progress>,
    /// Set before `TOLD`, unless the verdict does not matter.
    verdict: OnceLock<Verdict>,
    /// Nanoseconds; set before `SETTLED`.
    total: AtomicU64,
    pub(super) passed: Passed,
    pub(super) pending: Mutex<Pending<Hook, Task>>,
}

impl Exchange {
    /// Nobody tells what becomes of the response on the wire.
    pub(super) fn untracked(request: RequestLine) -> Self {
        Self::new(request, None, None)
    }

    /// The wire tells.
    #[cfg(feature = "flush")]
    pub(crate) fn tracked(request: RequestLine, wire: Arc<dyn Wire>, stream: Option<u32>) -> Self {
        Self::new(request, Some(wire), stream)
    }

    fn new(request: RequestLine, wire: Option<Arc<dyn Wire>>, stream: Option<u32>) -> Self {
        Self {
            began: Instant::now(),
            is_multiplexed: request.is_multiplexed(),
            facts: Facts::new(wire.is_some()),
            wire,
            stream,
            ending: OnceLock::new(),
            verdict: OnceLock::new(),
            total: AtomicU64::new(0),
            passed: Passed::default(),
            pending: Mutex::new(Pending::default()),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether the wire will tell when this response was flushed, as far as is known yet.
    pub(super) fn is_tracked(&self) -> bool {
        self.wire.is_some() && !matches!(self.verdict.get(), Some(Verdict::Unsure))
    }

    /// Whether anything was registered.
    pub(super) fn is_wanted(&self) -> bool {
        self.facts.is_wanted()
    }

    /// Notes that the response has a head, and therefore a body that is not dropped yet.
    pub(super) fn responded(&self) {
        if let (false, Some(wire)) = (self.is_multiplexed, &self.wire) {
            wire.head_ready();
        }
    }

    /// The head is about to be handed over, and opens a tunnel.
    pub(super) fn opens_tunnel(&self) {
        if let (Some(wire), Some(stream)) = (&self.wire, self.stream) {
            wire.ends_with_head(stream);
        }
    }

    /// Whoever held the response has let go of it.
    pub(super) fn released(self: &Arc<Self>, progress: Progress) {
        let awaits_wire = match progress.end() {
            End::Complete => true,
            End::BodyTooShort => self.is_multiplexed,
            _ => false,
        };
        let had_body = progress.has_head();
        if self.ending.set(progress).is_err() {
            return; // there is one guard
        }
        if let (true, false, Some(wire)) = (had_body, self.is_multiplexed, &self.wire) {
            wire.body_dropped();
        }
        let settles = if awaits_wire { self.facts.released() } else { self.facts.released_for_good() };
        if settles {
            self.settle();
        } else if let (true, false, Some(wire)) = (awaits_wire, self.is_multiplexed, &self.wire) {
            wire.await_flush(self.clone());
        }
    }

    /// The wire has said its word. The first one counts.
    #[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "for tracked connections"))]
    pub(crate) fn told(self: &Arc<Self>, verdict: Verdict) {
        if self.verdict.set(verdict).is_ok() && self.facts.told() {
            self.settle();
        }
    }

    fn settle(self: &Arc<Self>) {
        let total = u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.total.store(total, Relaxed);
        if let (Some(wire), Some(ending), Some(Verdict::Flushed { body_bytes: Some(sent) })) =
            (&self.wire, self.ending.get(), self.verdict.get())
        {
            if *sent != ending.body_bytes() {
                wire.mismatched();
            }
        }
        if self.facts.settled() {
            Driver::start(self.clone());
        }
    }

    /// `add` puts something into the list, which is run at once if the response is over.
    pub(super) fn register(self: &Arc<Self>, add: impl FnOnce(&mut Pending<Hook, Task>)) {
        add(&mut lock(&self.pending));
        if self.facts.registered() {
            Driver::start(self.clone());
        }
    }

    /// How it ended. Only to be asked once it is settled.
    pub(super) fn outcome(&self) -> Outcome {
        let ending = self.ending.get().expect("settled, so released");
        let (end, delivery) = match (ending.end(), self.verdict.get()) {
            (End::BodyTooShort, _) if !self.is_multiplexed => (End::BodyTooShort, Delivery::None),
            (End::Complete | End::BodyTooShort, Some(Verdict::Lost)) => (End::Aborted, Delivery::None),
            (end @ (End::Complete | End::BodyTooShort), Some(Verdict::Flushed { body_bytes }))
                if body_bytes.is_none_or(|sent| sent == ending.body_bytes()) && !ending.is_doubtful() =>
            {
                (end, Delivery::Flushed)
            }
            (end @ (End::Complete | End::BodyTooShort), _) => (end, Delivery::HandedOver),
            (end, _) => (end, Delivery::None),
        };
        ending.outcome(end, delivery, Duration::from_nanos(self.total.load(Relaxed)))
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("facts", &self.facts)
            .field("is_tracked", &self.is_tracked())
            .finish_non_exhaustive()
    }
}
