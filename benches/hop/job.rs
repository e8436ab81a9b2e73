//! What every variant runs, and where.

use std::{
    cell::Cell,
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::platform;

/// A job of this number keeps its thread for a while, so that the next one needs another.
pub(crate) const PAUSE: u64 = u64::MAX;

const ANYWHERE: usize = usize::MAX;

/// The core of threads that run jobs. Set before the first job, if ever.
static CORE: AtomicUsize = AtomicUsize::new(ANYWHERE);

thread_local! {
    static SETTLED: Cell<bool> = const { Cell::new(false) };
}

/// Next to nothing.
pub(crate) fn run(number: u64) -> u64 {
    let core = CORE.load(Ordering::Relaxed);
    if core != ANYWHERE && !SETTLED.get() {
        settle(core);
    }
    if number == PAUSE {
        thread::sleep(Duration::from_millis(5));
    }
    black_box(number.wrapping_mul(31).wrapping_add(1))
}

/// This thread moves to `here`, and every other to `there` with the first job it runs.
///
/// Threads that inherit their core would not do. Some variants start threads when they like, from a thread on the wrong
/// side; and a pool that is built on one core takes the machine to have one, and behaves as it should on that.
pub(crate) fn part(here: usize, there: usize) {
    settle(here);
    CORE.store(there, Ordering::Relaxed);
}

#[cold]
fn settle(core: usize) {
    // Checked beforehand, in `child`; there is nobody to tell in the middle of a job.
    let _ = platform::pin(core);
    SETTLED.set(true);
}
