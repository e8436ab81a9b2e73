//! Whose task runs on this thread: what a running task registers belongs to the drain that waits for the task.

use std::cell::Cell;

thread_local! {
    /// The address of the background, 0 for none. Put back, not cleared: a task may run on the stack of another.
    static WITHIN: Cell<usize> = const { Cell::new(0) };
}

/// Runs `work` as part of a task of that background.
pub(super) fn scope<S, T>(background: &S, work: impl FnOnce() -> T) -> T {
    let _restore = Restore(WITHIN.replace(address(background)));
    work()
}

pub(super) fn is_inside<S>(background: &S) -> bool {
    WITHIN.try_with(Cell::get) == Ok(address(background))
}

fn address<S>(background: &S) -> usize {
    std::ptr::from_ref(background).addr()
}

struct Restore(usize);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = WITHIN.try_with(|within| within.set(self.0));
    }
}
