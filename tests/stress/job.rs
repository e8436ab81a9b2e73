//! The work that calls run.

use std::{
    any::Any,
    fmt,
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, atomic::Ordering::SeqCst, mpsc},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use tower_offload::{CallError, cancelled};
use tower_service::Service;

use tower_offload_tests::Random;

use crate::{
    alarm::{Manner, Ring},
    ledger::{Entry, Token},
    patience::Watched,
    presence,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Blocks its thread for a moment.
    Block,
    /// Panics when it is dropped.
    Explode,
    /// Makes another call and waits for it.
    Nest,
    /// Is never woken. Used only by callers that leave.
    Never,
    Panic,
    /// Panics with a payload that panics when it is dropped.
    PanicTwice,
    Return,
    /// Blocks its thread until its caller leaves, or for a while.
    UntilCancelled,
    /// Is woken from another thread.
    Wake(Manner),
    /// Wakes itself this number of times.
    Yield(u8),
}

impl Plan {
    pub(crate) fn random(random: &mut Random, caller_stays: bool) -> Self {
        match random.below(40) {
            0 => Self::Block,
            1..=2 => Self::Explode,
            3..=6 => Self::Nest,
            7 if !caller_stays => Self::Never,
            8..=10 => Self::Panic,
            11..=12 => Self::PanicTwice,
            13 => Self::UntilCancelled,
            14..=21 => {
                Self::Wake(random.pick(&[Manner::Delayed, Manner::Late, Manner::Once, Manner::Spurious, Manner::Twice]))
            }
            22..=27 => Self::Yield(1 + random.below(4) as u8),
            _ => Self::Return,
        }
    }

    /// Returns a plan that closures and nested calls support.
    pub(crate) fn simple(self) -> Self {
        match self {
            Self::Explode | Self::Nest | Self::Never | Self::Wake(_) => Self::Return,
            other => other,
        }
    }
}

/// Makes a nested call.
pub(crate) type Inner = Box<dyn FnOnce() -> Watched + Send>;

pub(crate) struct Request {
    pub(crate) token: Token,
    pub(crate) alarm: mpsc::Sender<Ring>,
    pub(crate) inner: Option<Inner>,
}

impl Request {
    /// Runs the work as a closure.
    pub(crate) fn run(self) -> u64 {
        let entry = &*self.token.0;
        start(entry);
        hold_thread(entry.plan);
        panic_as_planned(&self);
        entry.ended.fetch_add(1, SeqCst);
        entry.id
    }
}

/// The work as a service, always ready.
#[derive(Debug, Clone)]
pub(crate) struct Work;

impl Service<Request> for Work {
    type Response = u64;
    type Error = CallError;
    type Future = Job;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Job {
        Job { request, inner: None, polls: 0 }
    }
}

/// The work as a future.
pub(crate) struct Job {
    request: Request,
    inner: Option<Watched>,
    polls: u8,
}

impl Future for Job {
    type Output = Result<u64, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let entry = self.request.token.0.clone();
        if self.polls == 0 {
            start(&entry);
        }
        self.polls = self.polls.saturating_add(1);
        let first = self.polls == 1;
        match entry.plan {
            Plan::Never => {
                if !first {
                    start(&entry); // Records a poll that nothing has caused.
                }
                return Poll::Pending;
            }
            Plan::Explode if first => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Plan::Nest => {
                if first {
                    self.inner = self.request.inner.take().map(|call| call());
                }
                if self.inner.as_mut().is_some_and(|inner| Pin::new(inner).poll(cx).is_pending()) {
                    return Poll::Pending;
                }
            }
            Plan::Wake(manner) => {
                if first {
                    let ring = Ring { waker: cx.waker().clone(), entry: entry.clone(), manner };
                    self.request.alarm.send(ring).unwrap();
                }
                if !entry.rung.load(SeqCst) {
                    return Poll::Pending;
                }
            }
            Plan::Yield(times) if self.polls <= times => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        hold_thread(entry.plan);
        panic_as_planned(&self.request);
        entry.ended.fetch_add(1, SeqCst);
        Poll::Ready(Ok(entry.id))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let entry = &self.request.token.0;
        if entry.plan == Plan::Explode && self.polls > 0 {
            entry.exploded.fetch_add(1, SeqCst);
            throw(Planned);
        }
    }
}

fn start(entry: &Entry) {
    presence::here();
    entry.started.fetch_add(1, SeqCst);
}

fn hold_thread(plan: Plan) {
    match plan {
        Plan::Block => thread::sleep(Duration::from_micros(100)), // work that blocks
        Plan::UntilCancelled => (0..50).take_while(|_| !cancelled()).for_each(|_| thread::yield_now()),
        _ => {}
    }
}

fn panic_as_planned(Request { token: Token(entry), alarm, .. }: &Request) {
    if let Plan::Panic | Plan::PanicTwice = entry.plan {
        entry.panicked.fetch_add(1, SeqCst);
        if entry.plan == Plan::Panic {
            throw(Planned);
        } else {
            throw(Bomb { entry: entry.clone(), _alarm: alarm.clone() });
        }
    }
}

/// Panics without running the panic hook, which would print a message each time.
fn throw(payload: impl Any + Send) {
    resume_unwind(Box::new(payload));
}

#[derive(Debug)]
struct Planned;

/// A payload that panics when it is dropped.
struct Bomb {
    entry: Arc<Entry>,
    /// Dropped after the record is complete: a round ends when all senders are dropped.
    _alarm: mpsc::Sender<Ring>,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.entry.payloads.fetch_add(1, SeqCst);
        if !thread::panicking() {
            throw(Planned);
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("polls", &self.polls).finish_non_exhaustive()
    }
}
