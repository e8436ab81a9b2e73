use std::collections::HashMap;

use tokio::sync::Notify;

use crate::{
    Record, TaskId, Timestamp,
    sync::{Mutex, lock},
};

/// Progress that the attempts of this process have reported and that is not written yet.
#[derive(Default)]
pub(super) struct ProgressBuffer {
    state: Mutex<State>,
    /// Notified when an attempt reports progress.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct State {
    next_key: u64,
    attempts: HashMap<u64, Attempt>,
}

struct Attempt {
    number: i64,
    /// Only its progress and its message are used.
    record: Record,
    /// `true` if the record has progress that is not written.
    is_dirty: bool,
}

/// Progress of an attempt, to be written.
#[derive(Debug, Clone)]
pub(super) struct ProgressUpdate {
    /// Key of the attempt in the buffer.
    key: u64,
    pub(super) id: TaskId,
    pub(super) attempt: i64,
    pub(super) progress: Option<f64>,
    pub(super) message: Option<String>,
}

impl ProgressBuffer {
    /// Adds an attempt and returns its key.
    pub(super) fn add(&self, id: TaskId, number: i64) -> u64 {
        let mut record = Record::new(id, "", Timestamp::default());
        record.start(Timestamp::default());
        let mut state = lock(&self.state);
        let key = state.next_key;
        state.next_key += 1;
        state.attempts.insert(key, Attempt { number, record, is_dirty: false });
        key
    }

    pub(super) fn advance(&self, key: u64, progress: Option<f64>, message: Option<String>) {
        let mut state = lock(&self.state);
        let Some(attempt) = state.attempts.get_mut(&key) else { return };
        if attempt.record.advance(progress, message) {
            attempt.is_dirty = true;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Removes an attempt, and returns its last progress unless it was written.
    pub(super) fn remove(&self, key: u64) -> Option<ProgressUpdate> {
        let attempt = lock(&self.state).attempts.remove(&key)?;
        attempt.is_dirty.then(|| attempt.update(key))
    }

    /// Returns all progress that is not written, and marks it as written.
    pub(super) fn take(&self) -> Vec<ProgressUpdate> {
        let mut state = lock(&self.state);
        let dirty = state.attempts.iter_mut().filter(|(_, attempt)| attempt.is_dirty);
        dirty
            .map(|(key, attempt)| {
                attempt.is_dirty = false;
                attempt.update(*key)
            })
            .collect()
    }

    /// Marks progress as not written, after a write that failed.
    pub(super) fn restore(&self, updates: &[ProgressUpdate]) {
        let mut state = lock(&self.state);
        for update in updates {
            if let Some(attempt) = state.attempts.get_mut(&update.key) {
                attempt.is_dirty = true;
            }
        }
    }
}

impl Attempt {
    fn update(&self, key: u64) -> ProgressUpdate {
        let Record { id, progress, ref message, .. } = self.record;
        ProgressUpdate { key, id, attempt: self.number, progress, message: message.clone() }
    }
}
