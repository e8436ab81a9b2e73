//! Records what happened to each call, where it happens.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
};

use tower_offload::CallError;

use crate::job::Plan;

/// All calls of a round.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Vec<Arc<Entry>>>);

impl Ledger {
    pub(crate) fn enter(&self, plan: Plan) -> Arc<Entry> {
        let mut entries = self.0.lock().unwrap();
        let entry = Arc::new(Entry::new(entries.len() as u64, plan));
        entries.push(entry.clone());
        entry
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.0.lock().unwrap().clone()
    }
}

/// Record of one call. Events are counted rather than flagged, so that repeated ones are detected.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) plan: Plan,
    /// First polls, or runs of the closure.
    pub(crate) started: AtomicU8,
    /// Outputs that the work returned.
    pub(crate) ended: AtomicU8,
    /// Panics out of a poll or out of the closure.
    pub(crate) panicked: AtomicU8,
    /// Panics of the future's drop.
    pub(crate) exploded: AtomicU8,
    /// Drops of the request, which moves into the future or closure.
    pub(crate) dropped: AtomicU8,
    /// Drops of the payload of a panic, counted for `Plan::PanicTwice`.
    pub(crate) payloads: AtomicU8,
    /// Answers that the caller has received.
    pub(crate) answered: AtomicU8,
    /// Times that the caller has left without an answer.
    pub(crate) left: AtomicU8,
    pub(crate) answer: Mutex<Option<Answer>>,
    /// Set before the wake-up that the work waits for.
    pub(crate) rung: AtomicBool,
}

/// Answer that a caller has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Panicked,
    Rejected(CallError),
    Value(u64),
}

impl Entry {
    fn new(id: u64, plan: Plan) -> Self {
        Self {
            id,
            plan,
            started: AtomicU8::new(0),
            ended: AtomicU8::new(0),
            panicked: AtomicU8::new(0),
            exploded: AtomicU8::new(0),
            dropped: AtomicU8::new(0),
            payloads: AtomicU8::new(0),
            answered: AtomicU8::new(0),
            left: AtomicU8::new(0),
            answer: Mutex::new(None),
            rung: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(SeqCst) > 0
    }

    pub(crate) fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = Some(answer);
        self.answered.fetch_add(1, SeqCst);
    }
}

/// Moves with the request into the future or closure, and counts their drop.
#[derive(Debug)]
pub(crate) struct Token(pub(crate) Arc<Entry>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, SeqCst);
    }
}
