use std::{collections::VecDeque, io, task::Poll};

use crate::{
    panic::ignore_panic,
    sync::{Mutex, lock},
};

/// Work that runs in short steps.
pub(super) trait Step: Send + 'static {
    /// Runs a part of the work. Returns `Ready` when it is done.
    fn step(&mut self) -> Poll<()>;
}

/// Items that one thread at a time runs, one step of each in turn.
///
/// The thread is started with the first item and ends with the last one. So a runtime that shuts
/// down with many open responses starts one thread, and not one for each of them.
pub(super) struct RunQueue<T>(Mutex<State<T>>);

struct State<T> {
    /// Items that no thread is running at the moment.
    items: VecDeque<T>,
    /// `true` while a thread is going to look at `items`. Cleared only under the lock under which
    /// that thread found them empty.
    has_runner: bool,
}

/// The code of the thread.
type Runner = Box<dyn FnOnce() + Send>;

impl<T: Step> RunQueue<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { items: VecDeque::new(), has_runner: false }))
    }

    /// Runs an item on the thread that runs the queue. If there is none, starts one with `spawn`,
    /// and if that fails, runs the queue on this thread.
    pub(super) fn run<H>(&'static self, item: T, spawn: impl FnOnce(Runner) -> io::Result<H>) {
        if self.push(item) && spawn(Box::new(|| self.run_all())).is_err() {
            self.run_all(); // blocking this thread is better than losing hooks and tasks
        }
    }

    fn run_all(&self) {
        while let Some(mut item) = self.pop() {
            // User code is contained in the step. Dropping the item may drop handles of users.
            ignore_panic(|| {
                if item.step().is_pending() {
                    lock(&self.0).items.push_back(item);
                }
            });
        }
    }

    /// Adds an item. Returns `true` if the caller must start a runner.
    #[must_use = "without a runner the item never runs"]
    fn push(&self, item: T) -> bool {
        let mut state = lock(&self.0);
        state.items.push_back(item);
        !std::mem::replace(&mut state.has_runner, true)
    }

    /// Takes the oldest item. Returns `None` if there is none, and the runner must end then.
    fn pop(&self) -> Option<T> {
        let mut state = lock(&self.0);
        let item = state.items.pop_front();
        state.has_runner = item.is_some();
        item
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
