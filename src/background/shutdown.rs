use std::{borrow::Cow, fmt, sync::Arc, thread, time::Duration};

use tokio::{runtime::Handle, time::Instant};

use super::{
    Background, Completion,
    error::fmt_task,
    metrics,
    shared::{Shared, drop_cancelled, in_task_of},
    state::Halt,
};
use crate::sync::{Mutex, lock};

/// Result of [`Background::shutdown`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackgroundShutdownReport {
    /// Number of tasks that succeeded during the shutdown.
    pub completed: u64,
    /// Number of tasks that failed during the shutdown.
    pub failed: u64,
    /// Number of tasks that were cancelled during the shutdown, including tasks that had not
    /// started at its timeout.
    pub cancelled: u64,
    /// The tasks that were still running at the timeout. They were cancelled and not waited for.
    pub still_running: Vec<RunningTask>,
}

/// A task that was still running when a shutdown timed out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunningTask {
    /// The id of the task, unique within its background.
    pub id: u64,
    /// The name of the task, empty if it has none.
    pub name: Cow<'static, str>,
    /// The time since the task started.
    pub age: Duration,
}

impl BackgroundShutdownReport {
    /// Returns `true` if every task ran to its end, successfully or not: none was cancelled and
    /// none is still running.
    pub fn is_clean(&self) -> bool {
        self.cancelled == 0 && self.still_running.is_empty()
    }
}

/// Formats the counts that are not zero and the tasks that still run, for example as `tasks: 3
/// completed, 1 still running (task 7 for 10.0s)`, or as `no task was open`.
impl fmt::Display for BackgroundShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { completed, failed, cancelled, still_running } = self;
        let counts = [(*completed, "completed"), (*failed, "failed"), (*cancelled, "cancelled")];
        let mut separator = "tasks: ";
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {what}")?;
            separator = ", ";
        }
        if still_running.is_empty() {
            return if separator == ", " { Ok(()) } else { f.write_str("no task was open") };
        }
        write!(f, "{separator}{} still running (", still_running.len())?;
        for (index, RunningTask { id, name, age }) in still_running.iter().take(MAX_LISTED).enumerate() {
            f.write_str(if index == 0 { "task " } else { ", task " })?;
            fmt_task(f, *id, name)?;
            write!(f, " for {age:.1?}")?;
        }
        match still_running.len().saturating_sub(MAX_LISTED) {
            0 => f.write_str(")"),
            more => write!(f, ", and {more} more)"),
        }
    }
}

/// Maximum number of tasks that the text of a report lists.
const MAX_LISTED: usize = 10;

impl Background {
    /// Closes the background and waits until its tasks are complete, up to `timeout`.
    ///
    /// Admitted tasks still run. A running task may submit further tasks, but only from its own
    /// code and not from threads or tasks that it spawns. A [`Reservation`](super::Reservation) is
    /// waited for like a task. After `timeout`, tasks that have not started are dropped and counted
    /// as cancelled. Running tasks are cancelled and listed in the report, and not waited for.
    ///
    /// Work that is dropped at the timeout is dropped on a separate thread, possibly after this
    /// method has returned, because user destructors may block. A running future is dropped by the
    /// pool or runtime that polls it, whose thread it can block.
    ///
    /// The report counts the tasks that ended during this shutdown; [`stats`](Self::stats) counts
    /// all. A second shutdown waits for tasks that the first one left running, with its own
    /// timeout.
    ///
    /// # Panics
    ///
    /// The future panics outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early, the background stays closed and its tasks continue.
    pub async fn shutdown(&self, timeout: Duration) -> BackgroundShutdownReport {
        let before = self.shared.begin_shutdown();
        let (after, still_running) = if tokio::time::timeout(timeout, self.shared.wait_until_idle()).await.is_ok() {
            (self.stats(), Vec::new())
        } else {
            self.halt()
        };
        BackgroundShutdownReport {
            completed: after.completed - before.completed,
            failed: after.failed - before.failed,
            cancelled: after.cancelled - before.cancelled,
            still_running,
        }
    }

    /// Cancels every task. Returns the counters after that, and the tasks that have started.
    fn halt(&self) -> (super::BackgroundStats, Vec<RunningTask>) {
        let (Halt { queued, dispatched, running }, stats) = self.shared.halt();
        let now = Instant::now();
        let report = |(header, started_at): &(Arc<super::header::TaskHeader>, Instant)| RunningTask {
            id: header.id,
            name: header.name.clone(),
            age: now.saturating_duration_since(*started_at),
        };
        let still_running = running.iter().map(report).collect();
        let mut cancelled: Vec<_> = running.into_iter().map(|(header, _)| header).chain(dispatched).collect();
        cancelled.iter().for_each(|header| header.cancel());
        cancelled.retain(|header| header.has_callback());
        for_each_on_thread(cancelled, |header| header.complete(Completion::Cancelled));
        queued.iter().for_each(|task| metrics::ended(&task.header, Completion::Cancelled, None));
        for_each_on_thread(queued, drop_cancelled);
        (stats, still_running)
    }
}

/// Calls `each` for every value, on a dedicated thread within the current runtime, because user
/// code may block. The pool is not used: all of its threads may be blocked, which may be why the
/// shutdown timed out.
fn for_each_on_thread<T: Send + 'static>(values: Vec<T>, each: fn(T)) {
    if values.is_empty() {
        return;
    }
    let runtime = Handle::current();
    let values = Arc::new(Mutex::new(values));
    let call_each = move |values: &Mutex<Vec<T>>| std::mem::take(&mut *lock(values)).into_iter().for_each(each);
    let thread_values = values.clone();
    let spawned = thread::Builder::new().name("background-shutdown".to_owned()).spawn(move || {
        let _entered = runtime.enter();
        call_each(&thread_values);
    });
    if spawned.is_err() {
        call_each(&values); // blocking the shutdown is better than losing the callbacks
    }
}

/// Keeps a shutdown of the background waiting, like a task, up to the timeout of the shutdown.
pub(crate) struct DrainGuard(Arc<Shared>);

impl DrainGuard {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.add_drain_guard();
        Self(shared)
    }

    /// Runs `work` like the code of a task: a closed background admits the tasks that it submits.
    #[cfg_attr(not(feature = "after-response"), allow(dead_code, reason = "for `after_response`"))]
    pub(crate) fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        in_task_of(&self.0, work)
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.0.remove_drain_guard();
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[test]
    fn report_lists_ten_tasks_and_no_zeros() {
        let mut report = BackgroundShutdownReport::default();
        assert_eq!(report.to_string(), "no task was open");
        report.completed = 3;
        assert_eq!(report.to_string(), "tasks: 3 completed");
        let task = |id| RunningTask { id, name: "".into(), age: Duration::from_millis(1234) };
        report.still_running = vec![RunningTask { name: "mail".into(), ..task(7) }, task(8)];
        let two = "tasks: 3 completed, 2 still running (task 7 `mail` for 1.2s, task 8 for 1.2s)";
        assert_eq!(report.to_string(), two);
        report.still_running = (0..12).map(task).collect();
        assert!(report.to_string().ends_with("task 9 for 1.2s, and 2 more)"), "{report}");
    }
}
