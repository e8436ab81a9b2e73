use tokio::task;

thread_local! {
    static THREAD: u8 = const { 0 };
}

/// Who runs now: the thread, and the task on it if it is tokio's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Here {
    /// Among those that live: where it keeps its own values. Cheaper than `std`'s id, which counts a reference each time.
    thread: usize,
    task: Option<task::Id>,
}

impl Here {
    pub(super) fn now() -> Self {
        Self { thread: THREAD.with(|here| std::ptr::from_ref(here).addr()), task: task::try_id() }
    }
}
