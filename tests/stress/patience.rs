//! The caller's side of a call: the answer that it receives, and when it leaves.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering::SeqCst, mpsc::Sender},
    task::{Context, Poll},
};

use tower_offload::CallError;

use tower_offload_tests::Random;

use crate::{
    alarm::Ring,
    ledger::{Answer, Entry},
};

pub(crate) type Response = Pin<Box<dyn Future<Output = Result<u64, CallError>> + Send>>;

/// Records the answer of a call, or that its caller left before. Catches panics.
pub(crate) struct Watched {
    entry: Arc<Entry>,
    /// `None` after the answer.
    response: Option<Response>,
    /// Dropped after the record is complete: a round ends when all senders are dropped.
    _alarm: Sender<Ring>,
}

impl Watched {
    pub(crate) fn new(entry: Arc<Entry>, response: Response, alarm: Sender<Ring>) -> Self {
        Self { entry, response: Some(response), _alarm: alarm }
    }
}

impl Future for Watched {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(response) = &mut self.response else { return Poll::Ready(()) };
        let answer = match catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(value))) => Answer::Value(value),
            Ok(Poll::Ready(Err(rejection))) => Answer::Rejected(rejection),
            Err(payload) => {
                let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                Answer::Panicked
            }
        };
        self.response = None;
        self.entry.answer(answer);
        Poll::Ready(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.response.take().is_some() {
            self.entry.left.fetch_add(1, SeqCst);
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// When a caller leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// After this number of polls.
    Polls(usize),
    /// When the work has ended, without taking its output, or after this number of checks.
    UntilEnd(usize),
    /// Never, and polls only when woken.
    Unlimited,
}

impl Patience {
    pub(crate) fn random(random: &mut Random) -> Self {
        match random.below(10) {
            0 => Self::Polls(0),
            1 | 2 => Self::Polls(1 + random.below(6)),
            3 => Self::UntilEnd(200),
            _ => Self::Unlimited,
        }
    }
}

/// A call and its caller's patience. Ready when the caller has an answer or leaves.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) watched: Watched,
    pub(crate) patience: Patience,
}

impl Future for Visit {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let left = match &mut this.patience {
            Patience::Unlimited => return Pin::new(&mut this.watched).poll(cx),
            Patience::Polls(left) => left,
            Patience::UntilEnd(_) if this.watched.entry.is_dropped() => return Poll::Ready(()),
            Patience::UntilEnd(left) => left,
        };
        let Some(fewer) = left.checked_sub(1) else { return Poll::Ready(()) };
        *left = fewer;
        let is_check = matches!(this.patience, Patience::UntilEnd(_)) && fewer % 100 != 0;
        cx.waker().wake_by_ref();
        if is_check { Poll::Pending } else { Pin::new(&mut this.watched).poll(cx) }
    }
}
