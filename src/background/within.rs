//! What this thread is doing for a background. What a running task registers belongs to the drain that waits for the task.

use std::cell::Cell;

/// The addresses of backgrounds, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Within {
    /// Whose task runs.
    task: usize,
    /// Who is handing out permits.
    dispatch: usize,
}

thread_local! {
    /// Put back, not cleared: a task may run on the stack of another.
    static WITHIN: Cell<Within> = const { Cell::new(Within { task: 0, dispatch: 0 }) };
}

/// Runs `work` as part of a task of that background. What it registers starts at once, also if a pool runs the task where it was
/// handed out.
pub(super) fn scope<S, T>(background: &S, work: impl FnOnce() -> T) -> T {
    let _restore = Restore(WITHIN.replace(Within { task: address(background), dispatch: 0 }));
    work()
}

pub(super) fn is_inside<S>(background: &S) -> bool {
    WITHIN.try_with(|within| within.get().task) == Ok(address(background))
}

/// Says that this thread hands out permits of that background; `None` if it does so already.
pub(super) fn dispatching<S>(background: &S) -> Option<impl Drop> {
    let dispatch = address(background);
    let before = WITHIN.try_with(Cell::get).unwrap_or(Within { task: 0, dispatch: 0 });
    (before.dispatch != dispatch).then(|| {
        let _ = WITHIN.try_with(|within| within.set(Within { dispatch, ..before }));
        Restore(before)
    })
}

fn address<S>(background: &S) -> usize {
    std::ptr::from_ref(background).addr()
}

struct Restore(Within);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = WITHIN.try_with(|within| within.set(self.0));
    }
}
