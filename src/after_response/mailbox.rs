use std::{mem, sync::OnceLock, task::Waker};

use crate::sync::{Mutex, lock};

/// Hands batches to a task that waits for the next one, if it is not working on one.
///
/// A batch is put only into the mailbox of a task that has not begun to work, so it never waits for
/// user code. Every batch that was put is taken or [retired](Self::retire), exactly once.
pub(super) struct Mailbox<B> {
    state: Mutex<State<B>>,
    /// The waker of the first poll that found no batch. A spawned task has the same one in each of
    /// its polls. Kept, because cloning it for each batch costs more than waking the task.
    waker: OnceLock<Waker>,
}

struct State<B> {
    receiver: Receiver<B>,
    /// `true` if no more batches will be put.
    is_closed: bool,
}

/// The task that takes the batches.
enum Receiver<B> {
    /// It was not spawned.
    NotStarted,
    /// It was spawned or woken, and will take this batch.
    Woken(B),
    /// It works on a batch, or ends.
    Busy,
    /// It waits for a batch.
    Waiting,
}

/// Result of [`Mailbox::put`].
pub(super) enum Put<'a, I> {
    /// The task will take the items together with earlier ones.
    Joined,
    /// The caller must wake the task.
    Wake(&'a Waker),
    /// The caller must spawn the task.
    Start,
    /// The task is busy or was dropped.
    Refused(I),
}

/// Result of [`Mailbox::take`].
pub(super) enum Taken<B> {
    Batch(B),
    /// There is no batch. The task is woken for the next one.
    Nothing,
    /// There is no batch, and the task must end.
    Closed,
}

impl<B> Mailbox<B> {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { receiver: Receiver::NotStarted, is_closed: false }), waker: OnceLock::new() }
    }

    /// Adds `items` to the batch that the task will take, or makes a batch of them.
    ///
    /// `begin` and `join` are called under the lock.
    pub(super) fn put<I>(&self, items: I, begin: impl FnOnce(I) -> B, join: impl FnOnce(&mut B, I)) -> Put<'_, I> {
        let mut state = lock(&self.state);
        match &mut state.receiver {
            Receiver::Busy => return Put::Refused(items),
            Receiver::Woken(batch) => {
                join(batch, items);
                return Put::Joined;
            }
            Receiver::NotStarted | Receiver::Waiting => {}
        }
        state.receiver = Receiver::Woken(begin(items));
        // It is set before the task waits first.
        self.waker.get().map_or(Put::Start, Put::Wake)
    }

    /// Called by the task when it has nothing to do.
    pub(super) fn take(&self, waker: &Waker) -> Taken<B> {
        let mut state = lock(&self.state);
        match mem::replace(&mut state.receiver, Receiver::Busy) {
            Receiver::Woken(batch) => Taken::Batch(batch),
            _ if state.is_closed => Taken::Closed,
            _ => {
                self.waker.get_or_init(|| waker.clone());
                state.receiver = Receiver::Waiting;
                Taken::Nothing
            }
        }
    }

    /// Makes the task end when it has nothing to do. Returns its waker if the caller must wake it.
    #[must_use = "a task that is not woken never ends"]
    pub(super) fn close(&self) -> Option<&Waker> {
        let mut state = lock(&self.state);
        state.is_closed = true;
        match state.receiver {
            Receiver::Waiting => self.waker.get(),
            _ => None,
        }
    }

    /// Called when the task is dropped. Returns the batch that it has not taken.
    #[must_use = "otherwise the batch is lost"]
    pub(super) fn retire(&self) -> Option<B> {
        match mem::replace(&mut lock(&self.state).receiver, Receiver::Busy) {
            Receiver::Woken(batch) => Some(batch),
            _ => None,
        }
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
