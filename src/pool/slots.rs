use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::Rejection;
use crate::sync::{
    AtomicUsize, Mutex,
    Ordering::{AcqRel, Acquire},
    lock,
};

/// A queue's places: a counter, and those who wait for it to fall, in the order of arrival.
///
/// A semaphore made for one pattern: taken and given back one at a time by different threads, hardly ever waited for. Tokio's
/// takes a lock for each release and wants an `Arc` for each permit, which at a million calls a second is a fifth of a
/// call.
///
/// Invariant: while somebody waits, the flag is set, and a place is taken only for the first who waits. Count and flag are
/// one atomic: whoever gives a place back learns in the same step whether somebody waits for it.
#[derive(Debug)]
pub(super) struct Slots {
    capacity: usize,
    /// `TAKEN` for each place taken, and `WAITING`, which is changed only under the lock of the queue.
    state: AtomicUsize,
    queue: Mutex<Queue>,
}

const WAITING: usize = 1;
const TAKEN: usize = 2;

#[derive(Debug)]
struct Queue {
    closed: bool,
    /// Sent to when a place was taken for the receiver.
    waiters: VecDeque<oneshot::Sender<()>>,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.min(usize::MAX / TAKEN - 1),
            state: AtomicUsize::new(0),
            queue: Mutex::new(Queue { closed: false, waiters: VecDeque::new() }),
        }
    }

    pub(super) fn taken(&self) -> usize {
        self.state.load(Acquire) / TAKEN
    }

    /// Takes a place at once or not at all. Not past those who wait.
    pub(super) fn try_take(&self) -> bool {
        self.take(|state| state & WAITING == 0)
    }

    fn take(&self, allowed: impl Fn(usize) -> bool) -> bool {
        let more = |state| (state / TAKEN < self.capacity && allowed(state)).then_some(state + TAKEN);
        self.state.fetch_update(AcqRel, Acquire, more).is_ok()
    }

    /// Gives a place back.
    pub(super) fn give(&self) {
        let mut places = 1;
        while places > 0 {
            let before = self.state.fetch_sub(places * TAKEN, AcqRel);
            let served = if before & WAITING == 0 { Vec::new() } else { self.serve(&mut lock(&self.queue)) };
            places = tell(served);
        }
    }

    /// Takes a place for each who waits, as long as there are any of either. They are to be told when the lock is free.
    fn serve(&self, queue: &mut Queue) -> Vec<oneshot::Sender<()>> {
        let mut served = Vec::new();
        while !queue.waiters.is_empty() && self.take(|_| true) {
            served.extend(queue.waiters.pop_front());
        }
        if queue.waiters.is_empty() {
            self.state.fetch_and(!WAITING, AcqRel);
        }
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
            self.state.fetch_or(WAITING, AcqRel);
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
            self.state.fetch_and(!WAITING, AcqRel);
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
