//! The tasks that keep an epoch: they renew its lease, poll for cancel requests, and sweep the
//! store.
//!
//! Each has its own task, so that none of them waits for another or for a write.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinSet, yield_now},
    time::sleep,
};

use super::{Writer, call_store};
use crate::{
    StoreError,
    lease::keep_renewed,
    panic::ignore_panic,
    progress::ProgressSink as _,
    store::{Epoch, Lease},
};

/// The tasks of an epoch. Dropping it aborts them.
pub(super) struct Upkeep {
    pub(super) epoch: Epoch,
    _tasks: JoinSet<()>,
}

/// Interval between sweeps. They evict records by age, which is not urgent, because stores bound
/// the number of records themselves.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Bounds of the interval at which the store looks for lost tasks.
const MIN_JUDGE_INTERVAL: Duration = Duration::from_millis(100);
const MAX_JUDGE_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum delay of a cancel request from another process.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Upkeep {
    pub(super) fn start(writer: &Arc<Writer>, lease: &Lease) -> Self {
        let (epoch, mut tasks) = (lease.epoch, JoinSet::new());
        if let Some(interval) = lease.renew_every {
            spawn(&mut tasks, renew(writer.clone(), epoch, interval));
        }
        let judge_interval = lease.renew_every.unwrap_or(MAX_JUDGE_INTERVAL);
        let judge_interval = judge_interval.clamp(MIN_JUDGE_INTERVAL, MAX_JUDGE_INTERVAL);
        spawn(&mut tasks, judge(writer.clone(), epoch, judge_interval));
        spawn(&mut tasks, poll_cancels(writer.clone(), epoch));
        spawn(&mut tasks, sweep(writer.clone()));
        Self { epoch, _tasks: tasks }
    }
}

fn spawn(tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
    ignore_panic(|| drop(tasks.spawn(task))); // the hooks of a runtime are user code
}

async fn renew(writer: Arc<Writer>, epoch: Epoch, interval: Duration) {
    let renew = || call_store(|| writer.store.renew(epoch));
    keep_renewed(interval, renew, |error, failures| writer.renewal_failed(error, failures)).await;
    writer.lease_lost(epoch);
}

/// Marks the tasks of crashed processes as lost.
async fn judge(writer: Arc<Writer>, epoch: Epoch, interval: Duration) {
    let mut failures = Failures::of(&writer, "look for tasks of lost processes");
    loop {
        sleep(interval).await;
        let now = writer.now();
        let lost = failures.note(call_store(|| writer.store.mark_lost(epoch, now)).await);
        #[cfg(feature = "tracing")]
        if let Some(lost @ 1..) = lost {
            ignore_panic(|| tracing::warn!(lost, "marked tasks as lost, because their processes have ended"));
        }
        #[cfg(not(feature = "tracing"))]
        let _ = lost;
    }
}

/// Cancels the tasks for which others have written a cancel request.
async fn poll_cancels(writer: Arc<Writer>, epoch: Epoch) {
    let mut failures = Failures::of(&writer, "look for cancel requests");
    loop {
        sleep(CANCEL_POLL_INTERVAL).await;
        if writer.with_state(|state| state.queue.is_empty()) {
            continue;
        }
        let requests = failures.note(call_store(|| writer.store.cancel_requests(epoch)).await);
        for task in requests.into_iter().flatten().filter_map(|id| writer.active(id)) {
            if !task.is_cancelled() {
                task.cancel();
            }
        }
    }
}

async fn sweep(writer: Arc<Writer>) {
    let mut failures = Failures::of(&writer, "evict records");
    loop {
        let now = writer.now();
        let swept = failures.note(call_store(|| writer.store.sweep(now, &writer.retention)).await);
        if swept.is_some_and(|swept| swept.more) {
            yield_now().await; // a store may respond without waiting
        } else {
            sleep(SWEEP_INTERVAL).await;
        }
    }
}

/// The failures of one kind of upkeep, which is repeated.
struct Failures<'a> {
    writer: &'a Writer,
    #[cfg_attr(not(feature = "tracing"), allow(dead_code, reason = "for events"))]
    work: &'static str,
    /// `true` if the last attempt has failed.
    has_failed: bool,
}

impl<'a> Failures<'a> {
    fn of(writer: &'a Writer, work: &'static str) -> Self {
        Self { writer, work, has_failed: false }
    }

    /// Counts a failure, and logs it unless the attempt before it has failed too.
    fn note<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        let had_failed = std::mem::replace(&mut self.has_failed, result.is_err());
        if result.is_err() {
            self.writer.with_state(|state| state.failed_maintenance += 1);
        }
        #[cfg(feature = "tracing")]
        if let Err(error) = result.as_ref().map_err(|error| error as &dyn std::error::Error) {
            if !had_failed {
                ignore_panic(|| tracing::warn!(error, "failed to {}", self.work));
            }
        }
        #[cfg(not(feature = "tracing"))]
        let _ = had_failed;
        result.ok()
    }
}
