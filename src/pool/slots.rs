use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::Rejection;
use crate::panic::{catch_unwind, drop_payload};
use crate::sync::{
    AtomicBool, AtomicUsize, Mutex,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
    Padded, fence, lock,
};

/// A queue's places: two counters, and those who wait for a place, in the order of arrival.
///
/// A semaphore made for one pattern: taken and given back one at a time by different threads, hardly ever waited for. Tokio's
/// takes a lock for each release and wants an `Arc` for each permit, which at a million calls a second is a fifth of a
/// call. And one counter for both ends would be passed from core to core twice a call.
///
/// Invariants: `given <= taken <= given + capacity`. While somebody waits, the flag is set, and a place is taken only for the
/// first who waits. Who gives a place back counts, then looks for the flag; who starts to wait sets the flag, then looks at
/// the counters: so one of the two sees the other.
#[derive(Debug)]
pub(super) struct Slots {
    capacity: usize,
    /// Set and cleared under the lock of the queue.
    waiting: AtomicBool,
    takers: Padded<Takers>,
    /// Places given back so far.
    given: Padded<AtomicUsize>,
    queue: Mutex<Queue>,
}

/// What only those who take places write.
#[derive(Debug, Default)]
struct Takers {
    /// Places taken so far.
    taken: AtomicUsize,
    /// `given`, as somebody saw it: too low at worst. Looked up again only when it says that there is no place.
    seen: AtomicUsize,
}

#[derive(Debug)]
struct Queue {
    closed: bool,
    /// Sent to when a place was taken for the receiver.
    waiters: VecDeque<oneshot::Sender<()>>,
    /// How many of these have left, at most.
    left: usize,
}

impl Queue {
    /// Removes those at the front who have left.
    fn forget_first(&mut self) {
        while self.waiters.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiters.pop_front();
            self.left = self.left.saturating_sub(1);
        }
    }
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            waiting: AtomicBool::new(false),
            takers: Padded::default(),
            given: Padded::default(),
            queue: Mutex::new(Queue { closed: false, waiters: VecDeque::new(), left: 0 }),
        }
    }

    pub(super) fn taken(&self) -> usize {
        let given = self.given.load(Acquire); // first: never below zero
        self.takers.taken.load(Acquire).wrapping_sub(given)
    }

    /// Takes a place at once or not at all. Not past those who wait.
    pub(super) fn try_take(&self) -> bool {
        !self.waiting.load(Relaxed) && self.take()
    }

    fn take(&self) -> bool {
        let Takers { taken, seen } = &*self.takers;
        // In this order, here and below: what is given back was taken before, so the difference is never below zero.
        let mut given = seen.load(Acquire);
        let mut before = taken.load(Acquire);
        loop {
            if before.wrapping_sub(given) >= self.capacity {
                given = self.given.load(Acquire);
                before = taken.load(Acquire);
                if before.wrapping_sub(given) >= self.capacity {
                    return false;
                }
                seen.store(given, Release);
            }
            match taken.compare_exchange_weak(before, before.wrapping_add(1), AcqRel, Acquire) {
                Ok(_) => return true,
                Err(now) => before = now,
            }
        }
    }

    /// Gives a place back.
    pub(super) fn give(&self) {
        let mut places = 1;
        while places > 0 {
            self.given.fetch_add(places, Release);
            fence(SeqCst);
            if !self.waiting.load(Relaxed) {
                return;
            }
            let served = self.serve(&mut lock(&self.queue));
            places = tell(served);
        }
    }

    /// Takes a place for each who waits, as long as there are any of either. They are to be told when the lock is free.
    fn serve(&self, queue: &mut Queue) -> Vec<oneshot::Sender<()>> {
        let mut served = Vec::new();
        queue.forget_first();
        while !queue.waiters.is_empty() && self.take() {
            served.extend(queue.waiters.pop_front());
            queue.forget_first();
        }
        if queue.waiters.is_empty() {
            self.waiting.store(false, Relaxed);
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
            self.waiting.store(true, Relaxed);
            fence(SeqCst);
            self.serve(&mut queue)
        };
        for _ in 0..tell(served) {
            self.give();
        }
        Ok(receiver)
    }

    /// One of those who wait has left, and its receiver is closed.
    pub(super) fn left(&self) {
        let mut queue = lock(&self.queue);
        queue.left += 1;
        // Not each time: with many who wait, that would take long.
        if queue.left * 2 > queue.waiters.len() {
            queue.left = 0;
            queue.waiters.retain(|waiter| !waiter.is_closed());
        }
        if queue.waiters.is_empty() {
            self.waiting.store(false, Relaxed);
        }
    }

    /// Nobody waits any more, and nobody will.
    pub(super) fn close(&self) {
        let waiters = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            self.waiting.store(false, Relaxed);
            std::mem::take(&mut queue.waiters)
        };
        drop(waiters); // wakes them: not under the lock
    }
}

/// Tells them that they have a place, and returns how many of them have left meanwhile.
fn tell(served: Vec<oneshot::Sender<()>>) -> usize {
    let told = |waiter: oneshot::Sender<()>| {
        catch_unwind(|| waiter.send(())).unwrap_or_else(|payload| {
            drop_payload(payload); // of a foreign waker; the place has arrived all the same
            Ok(())
        })
    };
    served.into_iter().filter_map(|waiter| told(waiter).err()).count()
}

#[cfg(all(test, tower_offload_loom))]
mod loom;

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn whoever_gives_up_waiting_is_forgotten() {
        let slots = Slots::new(1);
        assert!(slots.try_take());
        let patient = slots.wait().expect("it is open");
        for _ in 0..10_000 {
            drop(slots.wait().expect("it is open"));
            slots.left();
        }
        assert!(lock(&slots.queue).waiters.len() < 10);
        slots.give();
        assert_eq!((patient.blocking_recv(), slots.taken()), (Ok(()), 1));
        assert!(!slots.waiting.load(Relaxed), "nobody waits any more");
    }
}
