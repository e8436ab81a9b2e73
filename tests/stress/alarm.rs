//! A thread that wakes calls: once, twice, with a delay, and after they have ended.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::Ordering::SeqCst,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    task::Waker,
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::ledger::Entry;

/// Maximum number of wakers that are kept beyond the end of their call.
const MAX_KEPT: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// When no other wake-up was requested for a moment.
    Delayed,
    /// At once, and again after the call has ended.
    Late,
    Once,
    /// First without the condition that the work waits for, then with it.
    Spurious,
    Twice,
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) waker: Waker,
    pub(crate) entry: Arc<Entry>,
    pub(crate) manner: Manner,
}

impl Ring {
    fn ring(&self) {
        self.entry.rung.store(true, SeqCst);
        self.waker.wake_by_ref();
    }
}

/// Starts the thread. It exits when all senders are dropped, including those of calls and of their
/// callers.
pub(crate) fn start() -> (Sender<Ring>, JoinHandle<()>) {
    let (sender, rings) = channel();
    (sender, thread::spawn(move || serve(&rings)))
}

fn serve(rings: &Receiver<Ring>) {
    let mut delayed = Vec::new();
    let mut kept = VecDeque::new();
    loop {
        match rings.recv_timeout(Duration::from_micros(200)) {
            Ok(ring) => match ring.manner {
                Manner::Delayed => delayed.push(ring),
                Manner::Late => {
                    ring.ring();
                    kept.push_back(ring.waker);
                }
                Manner::Once => {
                    ring.entry.rung.store(true, SeqCst);
                    ring.waker.wake();
                }
                Manner::Spurious => {
                    ring.waker.wake_by_ref();
                    thread::yield_now();
                    ring.ring();
                }
                Manner::Twice => {
                    ring.ring();
                    ring.waker.wake();
                }
            },
            Err(RecvTimeoutError::Timeout) => mem::take(&mut delayed).iter().for_each(Ring::ring),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if delayed.len() > MAX_KEPT {
            mem::take(&mut delayed).iter().for_each(Ring::ring);
        }
        if kept.len() > MAX_KEPT {
            kept.pop_front().into_iter().for_each(Waker::wake);
        }
    }
    // No call is left, so all of these are late.
    delayed.iter().for_each(Ring::ring);
    kept.into_iter().for_each(Waker::wake);
}
