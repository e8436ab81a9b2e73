use crate::panic::ignore_panic;
use std::task::Waker;

/// Who is to be woken at the end of a call.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) waker: Waker,
    /// Whether the call was made, and is awaited, in one and the same task.
    pub(crate) is_task: bool,
}

impl Reply {
    /// Wakes the caller, with a waker that is foreign code.
    pub(crate) fn wake(self) {
        ignore_panic(|| self.waker.wake());
    }
}
