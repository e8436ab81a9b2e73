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
};
use crate::{
    CallError,
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
    /// The work sees the rest of the time in [`remaining`](super::Context::remaining), also if it
    /// has already begun. To limit the time in the queue too, use a
    /// [deadline](crate::pool#deadlines).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.control.set_timeout(timeout);
        self
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

/// Runs a job on this thread, which belongs to the pool.
pub(super) fn run<W: Work>(
    shared: &Shared,
    control: Arc<JobControl>,
    trace: Option<&str>,
    work: W,
) -> Result<W::Output, RunError<W::Error>> {
    if let Some(remaining) = Deadline::current().remaining() {
        control.set_timeout(remaining);
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
    match driver::run(shared, &Job { id, kind: W::KIND, control, timeout, request }) {
        Ok(output) => decode(&output),
        Err(error) => Err(match error {
            RunError::Failed(error) => RunError::Failed(decode(&error)?),
            RunError::Rejected(error) => RunError::Rejected(error),
            RunError::NoProcess(error) => RunError::NoProcess(error),
            RunError::UnknownKind(kind) => RunError::UnknownKind(kind),
            RunError::InvalidData(error) => RunError::InvalidData(error),
            RunError::Panicked(panic) => RunError::Panicked(panic),
            RunError::Killed { by } => RunError::Killed { by },
            RunError::Exited { code } => RunError::Exited { code },
            RunError::Protocol => RunError::Protocol,
        }),
    }
}

fn decode<T: serde::de::DeserializeOwned, E>(bytes: &[u8]) -> Result<T, RunError<E>> {
    postcard::from_bytes(bytes).map_err(|error| RunError::InvalidData(DataError::encoding("result", error)))
}

/// The error of a call that its pool does not run.
impl<E> From<CallError> for RunError<E> {
    fn from(error: CallError) -> Self {
        Self::Rejected(error)
    }
}
