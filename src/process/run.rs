use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    Work,
    child::JobControl,
    driver::{self, Job},
    error::{DataError, RunError},
    frame::{self, EncodeError, Request},
    shared::Shared,
    worker,
};
use crate::{
    CallError,
    panic::{catch_unwind, drop_payload},
    pool::{self, Deadline},
};

/// Future of [`ProcessPool::run`](super::ProcessPool::run): the output of the work, or the reason
/// why there is none.
///
/// # Cancel safety
///
/// Dropping it cancels the job. One that has not started never runs. One that runs is asked to
/// stop, and its process is killed after the [grace period](super::ProcessPoolBuilder::grace).
#[must_use = "dropping it cancels the job"]
pub struct Run<W: Work> {
    call: pool::Run<Result<W::Output, RunError<W::Error>>>,
    control: Arc<JobControl>,
}

impl<W: Work> Run<W> {
    pub(super) fn new(call: pool::Run<Result<W::Output, RunError<W::Error>>>, control: Arc<JobControl>) -> Self {
        Self { call, control }
    }

    /// Limits how long the job may run. The time counts from when a process is given the job, so a
    /// job that waits in the queue does not use it up. Of several timeouts the shortest applies.
    ///
    /// After the timeout, [`is_cancelled`](super::Context::is_cancelled) returns `true` in the
    /// work. If it has not returned after the [grace period](super::ProcessPoolBuilder::grace), its
    /// process is killed, and the job ends with
    /// [`KilledBy::Timeout`](super::KilledBy::Timeout).
    ///
    /// The answer comes up to the grace period after the timeout, when the process is gone. A
    /// [deadline](crate::pool#deadlines) answers in time, and includes the time in the queue.
    ///
    /// The work sees the rest of the time in [`remaining`](super::Context::remaining), also if it
    /// has already begun.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.control.set_timeout(timeout);
        self
    }

    /// Sets a callback for the [progress](super::Context::progress) that the work reports: how much
    /// is done, and a message. Of several callbacks the last one applies.
    ///
    /// It runs on a thread of the pool, at most once every 20 ms and once more before the end, and
    /// must not block: the thread enforces the limits of the job. If it panics, the report is lost.
    /// It may run after the future was dropped, until the process is gone.
    pub fn on_progress(self, callback: impl Fn(f64, &str) + Send + Sync + 'static) -> Self {
        self.control.set_on_progress(Arc::new(callback));
        self
    }

    /// Cancels the job like dropping the future does, for a caller that waits for its end.
    ///
    /// The future then returns [`KilledBy::Cancelled`](super::KilledBy::Cancelled) when the process
    /// is gone, or what the work has returned within the
    /// [grace period](super::ProcessPoolBuilder::grace). If the job has not started, it never does,
    /// and the future returns [`CallError::Closed`] when its turn comes.
    pub fn cancel(&self) {
        self.control.cancel();
    }
}

impl<W: Work> Future for Run<W> {
    type Output = Result<W::Output, RunError<W::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.call).poll(cx)) {
            Ok(result) => result,
            Err(error) => {
                // At the deadline, the job may still be running.
                self.control.cancel();
                Err(RunError::Rejected(error))
            }
        })
    }
}

impl<W: Work> Drop for Run<W> {
    fn drop(&mut self) {
        self.control.cancel(); // no effect on a job that has ended
    }
}

impl<W: Work> fmt::Debug for Run<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("kind", &W::KIND).field("timeout", &self.control.timeout()).finish_non_exhaustive()
    }
}

/// Runs a job on this thread, which belongs to the pool, if `begin` returns a guard. The guard is
/// held until the job has ended.
pub(super) fn run<W: Work, G>(
    shared: &Shared,
    control: Arc<JobControl>,
    trace: Option<&str>,
    begin: impl FnOnce() -> Option<G>,
    work: W,
) -> Result<W::Output, RunError<W::Error>> {
    if let Some(remaining) = Deadline::current().remaining() {
        control.set_timeout(remaining);
    }
    if worker::has_other_type::<W>() {
        return Err(RunError::UnknownKind(W::KIND));
    }
    let (id, max) = (shared.next_job(), shared.config.max_frame_size);
    let timeout = control.timeout();
    let header = Request::Run { job: id, kind: W::KIND, remaining: timeout, trace };
    let request = frame::encode_with(&header, &work, max).map_err(|error| {
        RunError::InvalidData(match error {
            EncodeError::TooLarge(len) => DataError::too_large("input", len, max),
            EncodeError::Invalid(error) => DataError::encoding("input", error),
        })
    })?;
    drop(work);
    let (mut begin, mut guard) = (Some(begin), None);
    let mut begins = || {
        // The job gets another process if the first one ends before it has started the job.
        let Some(begin) = begin.take() else { return true };
        guard = catch_unwind(begin).unwrap_or_else(|payload| {
            drop_payload(payload);
            None
        });
        guard.is_some()
    };
    match driver::run(shared, &Job { id, kind: W::KIND, control, timeout, request }, &mut begins) {
        Ok(output) => decode(&output),
        Err(RunError::Failed(error)) => Err(RunError::Failed(decode(&error)?)),
        Err(error) => Err(error.map_failed(|_| unreachable!("matched above"))),
    }
}

fn decode<T: serde::de::DeserializeOwned, E>(bytes: &[u8]) -> Result<T, RunError<E>> {
    frame::decode_payload(bytes).map_err(|error| RunError::InvalidData(DataError::encoding("result", error)))
}

/// The error of a call that its pool does not run.
impl<E> From<CallError> for RunError<E> {
    fn from(error: CallError) -> Self {
        Self::Rejected(error)
    }
}
