use std::{sync::Arc, task::Waker};

use loom::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
};

use super::{Mailbox, Put, Taken};

struct Shared {
    mailbox: Mailbox<u32>,
    /// Sum of all items that were taken, refused or retired.
    sum: AtomicU32,
    ends: AtomicU32,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self { mailbox: Mailbox::new(), sum: AtomicU32::new(0), ends: AtomicU32::new(0) })
    }

    /// Polls the task once.
    fn poll(&self) {
        loop {
            match self.mailbox.take(Waker::noop()) {
                Taken::Batch(batch) => _ = self.sum.fetch_add(batch, Relaxed),
                Taken::Nothing => return,
                Taken::Closed => {
                    self.ends.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
    }

    /// Puts an item. Returns `true` if the task must be polled.
    fn put(&self, item: u32) -> bool {
        match self.mailbox.put(item, |item| item, |batch, item| *batch += item) {
            Put::Joined => false,
            Put::Wake(_) | Put::Start => true,
            Put::Refused(item) => {
                self.sum.fetch_add(item, Relaxed);
                false
            }
        }
    }
}

/// A runtime polls a woken task on another thread, and never on two at a time.
#[test]
fn each_item_is_taken_or_refused_and_the_task_ends() {
    loom::model(|| {
        let shared = Shared::new();
        let spawn = || {
            let shared = shared.clone();
            thread::spawn(move || shared.poll())
        };
        assert!(shared.put(1), "it must be spawned");
        let mut polls = spawn();
        for item in [2, 4] {
            if shared.put(item) {
                polls.join().unwrap();
                polls = spawn();
            }
        }
        let is_waiting = shared.mailbox.close().is_some();
        polls.join().unwrap();
        if is_waiting {
            shared.poll();
        }
        assert_eq!(shared.sum.load(Relaxed), 7);
        assert_eq!(shared.ends.load(Relaxed), 1);
    });
}

/// A runtime that shuts down drops the task, at any time.
#[test]
fn items_of_a_dropped_task_are_retired() {
    loom::model(|| {
        let shared = Shared::new();
        assert!(shared.put(1));
        let runtime = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.poll();
                if let Some(batch) = shared.mailbox.retire() {
                    shared.sum.fetch_add(batch, Relaxed);
                }
            }
        });
        let woken = shared.put(2);
        let woken_again = shared.put(4);
        assert!(!(woken && woken_again), "it was not polled in between");
        runtime.join().unwrap();
        assert!(!shared.put(8), "it was dropped");
        assert_eq!(shared.sum.load(Relaxed), 15);
    });
}
