use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::Rejection;
use crate::sync::{AtomicUsize, Mutex, Ordering::SeqCst, lock};

/// A queue's places: a counter, and those who wait for it to fall, in the order of arrival.
///
/// A semaphore made for one pattern: taken and given back one at a time by different threads, hardly ever waited for. Tokio's
/// takes a lock for each release and wants an `Arc` for each permit, which at a million calls a second is a fifth of a
/// call.
///
/// Invariants:
/// * `taken` is at most `capacity`, and while somebody waits a place is taken only for the first who waits.
/// * Whoever gives a place back lowers `taken`, then looks at `waiting`; whoever starts to wait raises `waiting`, then looks
///   at `taken`. So one sees the other, and no place stays free while somebody waits.
#[derive(Debug)]
pub(super) struct Slots {
    capacity: usize,
    taken: AtomicUsize,
    /// How many stand in `queue`; changed under its lock.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    closed: bool,
    /// Sent to when a place was taken for the receiver.
    waiters: VecDeque<oneshot::Sender<()>>,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::new(Queue { closed: false, waiters: VecDeque::new() }),
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(SeqCst)
    }

    /// Takes a place at once or not at all.
    pub(super) fn try_take(&self) -> bool {
        self.waiting.load(SeqCst) == 0 && self.take()
    }

    fn take(&self) -> bool {
        self.taken.fetch_update(SeqCst, SeqCst, |taken| (taken < self.capacity).then_some(taken + 1)).is_ok()
    }

    /// Gives a place back.
    pub(super) fn give(&self) {
        let mut places = 1;
        while places > 0 {
            self.taken.fetch_sub(places, SeqCst);
            places = if self.waiting.load(SeqCst) > 0 {
                let served = self.serve(&mut lock(&self.queue));
                tell(served)
            } else {
                0
            };
        }
    }

    /// Takes a place for each who waits, as long as there are any of either. They are to be told when the lock is free.
    fn serve(&self, queue: &mut Queue) -> Vec<oneshot::Sender<()>> {
        let mut served = Vec::new();
        while !queue.waiters.is_empty() && self.take() {
            served.extend(queue.waiters.pop_front());
        }
        self.waiting.store(queue.waiters.len(), SeqCst);
        served
    }

    /// Starts to wait. The place comes through the receiver: whoever drops that has to look whether it came.
    pub(super) fn wait(&self) -> Result<oneshot::Receiver<()>, Rejection> {
        let (sender, receiver) = oneshot::channel();
        let served = {
            let mut queue = lock(&self.queue);
            if queue.closed {
                return Err(Rejection::Closed);
            }
            queue.waiters.push_back(sender);
            self.waiting.store(queue.waiters.len(), SeqCst);
            self.serve(&mut queue)
        };
        for _ in 0..tell(served) {
            self.give();
        }
        Ok(receiver)
    }

    /// Nobody waits any more, and nobody will.
    pub(super) fn close(&self) {
        let waiters = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            self.waiting.store(0, SeqCst);
            std::mem::take(&mut queue.waiters)
        };
        drop(waiters); // wakes them: not under the lock
    }
}

/// Tells them that they have a place, and returns how many of them have left meanwhile.
fn tell(served: Vec<oneshot::Sender<()>>) -> usize {
    served.into_iter().filter_map(|waiter| waiter.send(()).err()).count()
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
