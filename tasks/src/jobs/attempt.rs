//! One attempt of a job, from its claim to its end.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use riverqueue::Client;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tower_offload::CallError;

use super::{
    gate::Gate, insert::parse_storable, outcome::Outcome, progress::ProgressBuffer, queue::Environment, running::Claim,
    slots::Slots, worker::WorkFuture,
};
use crate::{Failure, TaskId, panic::ignore_panic, progress::ProgressSink, record::Ending};

/// Time after a claim until which work begins without asking the database. Later, another process
/// may have recovered the job.
pub(super) const MAX_UNASKED: Duration = Duration::from_secs(1);
/// Time after which a job that waits for a thread is shown as queued again. If the process crashes
/// later, the attempt does not count.
const MAX_HIDDEN_WAIT: Duration = Duration::from_millis(20);
/// Time after which a job that was claimed ahead is handed back, so that other processes can run
/// it.
const MAX_AHEAD_WAIT: Duration = Duration::from_millis(100);
/// Delay before another try to run a job that the pool has rejected, or whose earlier attempt is
/// still running here.
pub(super) const RETURN_DELAY: Duration = Duration::from_secs(1);

/// An attempt that runs on a worker.
pub(super) struct Run<'a> {
    pub(super) environment: &'a Environment,
    pub(super) slots: &'a Slots,
    pub(super) client: Option<&'a Client>,
    pub(super) claim: &'a Claim,
    pub(super) attempt: &'a Attempt,
    /// Notified when the attempt is stopped.
    pub(super) stopped: &'a Notify,
    /// `true` if the work is a closure or runs in a process. Its future must not be dropped once it
    /// has begun, because the work would continue unobserved.
    pub(super) outlives_future: bool,
    /// `true` if the work ends by itself at the timeout, and its end says so.
    pub(super) enforces_timeout: bool,
    pub(super) timeout: Duration,
}

impl Run<'_> {
    /// Runs the work until it has ended.
    ///
    /// `stop` completes when River stops the attempt. On a stop or a timeout, a future is dropped.
    /// A closure cannot be stopped, and a process has a grace period, so this function waits for
    /// them, and River starts no other attempt in the meantime. Work that has not begun is dropped
    /// in both cases, also if the queue `drains`, and when shorter jobs than it had been claimed
    /// for become long.
    pub(super) async fn run(
        &self,
        mut work: WorkFuture,
        gate: &Gate,
        stop: impl Future<Output = ()>,
        drains: impl Future<Output = ()>,
    ) -> Outcome {
        let _revoke = Revoke(gate);
        let mut permit = None;
        let mut has_begun = false;
        let claimed_at = Instant::now();
        let (mut show_at, return_at) = (Some(claimed_at + MAX_HIDDEN_WAIT), claimed_at + MAX_AHEAD_WAIT);
        let (mut acquire, mut late) = (pin!(self.slots.acquire()), pin!(sleep(Duration::MAX)));
        let (mut stop, mut drains) = (pin!(stop), pin!(drains));
        let (mut is_late, mut is_stopped, mut is_draining) = (false, false, false);
        loop {
            tokio::select! {
                biased;
                ended = &mut work, if permit.is_some() => {
                    if let Some(begun_at) = gate.begun_at() {
                        self.slots.on_end(begun_at.elapsed(), self.client);
                    }
                    return outcome(ended, self.timeout, is_late, is_stopped);
                }
                // A closure begins on its own thread, and so does the driver of a process.
                () = gate.begun(), if permit.is_some() && !has_begun => {
                    has_begun = true;
                    if !self.enforces_timeout {
                        late.set(sleep(self.timeout));
                    }
                }
                () = &mut stop, if !is_stopped => {
                    is_stopped = true;
                    if gate.revoke() {
                        ignore_panic(|| drop(work));
                        return Outcome::NotBegun(Duration::ZERO);
                    }
                    self.attempt.is_cancelled.store(true, Ordering::Release);
                    self.stopped.notify_one();
                    if !self.outlives_future {
                        ignore_panic(|| drop(work));
                        return Outcome::Stopped;
                    }
                }
                () = &mut drains, if !is_draining => {
                    is_draining = true;
                    if gate.revoke() {
                        ignore_panic(|| drop(work));
                        return Outcome::NotBegun(Duration::ZERO);
                    }
                }
                () = &mut late, if has_begun && !is_late => {
                    is_late = true;
                    self.attempt.is_cancelled.store(true, Ordering::Release);
                    if !self.outlives_future {
                        ignore_panic(|| drop(work));
                        return Outcome::Failed(timeout_failure(self.timeout));
                    }
                }
                () = gate.asked() => gate.answer(self.may_begin().await),
                () = sleep_until(show_at.unwrap_or_else(Instant::now)), if show_at.is_some() && !has_begun => {
                    show_at = None;
                    if gate.guard() {
                        // If this fails, the work still asks before it begins.
                        let _ = self.environment.database.show_as_queued(self.claim).await;
                    }
                }
                // It was claimed ahead, and the running jobs are not short after all.
                () = sleep_until(return_at), if permit.is_none() => {
                    self.slots.on_long_wait(self.client);
                    gate.revoke();
                    ignore_panic(|| drop(work));
                    return Outcome::NotBegun(Duration::ZERO);
                }
                acquired = &mut acquire, if permit.is_none() => {
                    permit = Some(acquired);
                    // Here and not when the work asks, because a future would block the runtime.
                    if gate.is_guarded() {
                        gate.answer(self.may_begin().await);
                    }
                }
            }
        }
    }

    /// Asks the database whether the claim is still valid, and shows the job as running.
    async fn may_begin(&self) -> bool {
        match self.environment.database.show_as_running(self.claim).await {
            Ok(is_valid) => is_valid,
            Err(error) => {
                super::events::warn("failed to check a claim before its job begins", &error);
                false
            }
        }
    }
}

/// Revokes work that has not begun, when its attempt is dropped.
struct Revoke<'a>(&'a Gate);

impl Drop for Revoke<'_> {
    fn drop(&mut self) {
        self.0.revoke();
    }
}

fn outcome(ended: Result<Option<Ending>, CallError>, timeout: Duration, is_late: bool, is_stopped: bool) -> Outcome {
    match ended {
        Ok(Some(_)) if is_late => Outcome::Failed(timeout_failure(timeout)),
        // If a closure succeeds despite the stop, the attempt has succeeded.
        Ok(Some(Ending::Succeeded(result))) => Outcome::Succeeded(result),
        Ok(Some(_)) if is_stopped => Outcome::Stopped,
        Ok(Some(Ending::Failed(failure))) => Outcome::Failed(failure),
        Ok(Some(_)) => Outcome::Stopped,
        Ok(None) => Outcome::NotBegun(Duration::ZERO),
        Err(_) => Outcome::NotBegun(RETURN_DELAY),
    }
}

/// Turns a result that not every database can store into a failure.
pub(super) fn storable(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Succeeded(json) => match parse_storable(json.as_str()) {
            Ok(()) => Outcome::Succeeded(json),
            Err(message) => Outcome::Failed(Failure::new("result", format!("the result cannot be stored: {message}"))),
        },
        outcome => outcome,
    }
}

/// Class of the failure of an attempt that timed out. The triggers give a job the state `timed_out`
/// if its last attempt failed with this class.
pub(super) const TIMEOUT_CLASS: &str = "timeout";

fn timeout_failure(timeout: Duration) -> Failure {
    Failure::new(TIMEOUT_CLASS, format!("the attempt exceeded its timeout of {timeout:?}"))
}

/// Receives the progress reports of an attempt.
pub(super) struct Attempt {
    id: TaskId,
    is_cancelled: AtomicBool,
    buffer: Arc<ProgressBuffer>,
    /// Key of the attempt in the buffer.
    pub(super) progress_key: u64,
}

impl Attempt {
    pub(super) fn new(id: TaskId, number: i64, buffer: Arc<ProgressBuffer>) -> Self {
        let progress_key = buffer.add(id, number);
        Self { id, is_cancelled: AtomicBool::new(false), buffer, progress_key }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.buffer.remove(self.progress_key);
    }
}

impl ProgressSink for Attempt {
    fn id(&self) -> TaskId {
        self.id
    }

    fn advance(&self, progress: Option<f64>, message: Option<String>) {
        self.buffer.advance(self.progress_key, progress, message);
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }
}
