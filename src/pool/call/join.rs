use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{context::Wait, state::OnCallerDrop, timer::DeadlineTimer};
use crate::pool::{deadline::Deadline, error::CallError};

/// Reason why a call has no output.
pub(crate) enum CallFailure {
    Rejected(CallError),
    /// The work panicked with this payload.
    Panicked(Box<dyn Any + Send>),
}

impl fmt::Debug for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(error) => f.debug_tuple("Rejected").field(error).finish(),
            Self::Panicked(_) => f.write_str("Panicked"),
        }
    }
}

/// The caller's handle of a call, a future of its output. Dropping it cancels the call, unless that
/// is detached.
pub(crate) struct JoinHandle<T> {
    /// `None` after the output was returned.
    call: Option<Arc<dyn Join<T>>>,
    /// `true` after a failure was returned. The call is then kept only for
    /// [`expected_wait`](Self::expected_wait).
    has_failed: bool,
    on_drop: OnCallerDrop,
    /// `Ordinary` until a call of the same pool has waited for this one.
    wait: Wait,
    timer: DeadlineTimer,
}

/// The part of a call that its handle uses, independent of the future's type.
pub(super) trait Join<T>: Send + Sync {
    /// Sets `wait` if the polling thread waits and belongs to the call's pool.
    ///
    /// # Safety
    ///
    /// Only one thread at a time may call it.
    #[allow(unsafe_code)]
    unsafe fn poll_result(&self, cx: &mut Context<'_>, wait: &mut Wait) -> Poll<Result<T, CallFailure>>;
    /// Returns how long a new call of the pool is expected to wait.
    fn expected_wait(&self) -> Duration;
    /// Records that the current thread no longer waits for this call.
    fn end_wait(&self);
    /// Drops the reference. Cheaper than its drop, since the size of the call is known here.
    fn release(self: Arc<Self>);
    fn drop_caller(self: Arc<Self>, on_drop: OnCallerDrop);
    /// Leaves the call and returns `error`, or returns its result if it has just ended.
    fn reject_caller(self: Arc<Self>, error: CallError, on_drop: OnCallerDrop) -> Result<T, CallFailure>;
    fn deadline(&self) -> Deadline;
}

impl<T> JoinHandle<T> {
    /// Returns the handle of a call.
    ///
    /// # Safety
    ///
    /// The call must have no other handle.
    #[allow(unsafe_code)]
    pub(super) unsafe fn new(call: Arc<dyn Join<T>>, on_drop: OnCallerDrop, has_deadline: bool) -> Self {
        let timer = DeadlineTimer::new(has_deadline);
        Self { call: Some(call), has_failed: false, on_drop, wait: Wait::Ordinary, timer }
    }
}

impl<T> JoinHandle<T> {
    /// Stops waiting for the call.
    #[cold]
    fn reject(call: &Arc<dyn Join<T>>, error: CallError, on_drop: OnCallerDrop) -> Result<T, CallFailure> {
        call.clone().reject_caller(error, on_drop)
    }

    /// Returns how long a new call of the pool is expected to wait. Zero once the output was
    /// returned.
    pub(crate) fn expected_wait(&self) -> Duration {
        self.call.as_ref().map(|call| call.expected_wait()).unwrap_or_default()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, CallFailure>;

    #[inline(always)] // Into the future of the layer, so that the output is copied once less.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { call, has_failed, on_drop, wait, timer } = &mut *self;
        let known = call.as_ref().filter(|_| !*has_failed);
        let known = known.expect("a future of an offloaded call was polled after it completed");
        // SAFETY: This is the only handle of the call, and it is borrowed exclusively.
        #[allow(unsafe_code)]
        let polled = unsafe { known.poll_result(cx, wait) };
        let result = match polled {
            Poll::Ready(result) => result,
            Poll::Pending if *wait == Wait::Deadlocked => {
                Self::reject(known, CallError::Deadlock, OnCallerDrop::Cancel)
            }
            Poll::Pending if timer.has_fired(|| known.deadline(), cx) => {
                Self::reject(known, CallError::DeadlineExceeded, *on_drop)
            }
            Poll::Pending => return Poll::Pending,
        };
        if *wait != Wait::Ordinary {
            known.end_wait();
        }
        match &result {
            Ok(_) => call.take().into_iter().for_each(|call| call.release()),
            Err(_) => *has_failed = true,
        }
        Poll::Ready(result)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take().filter(|_| !self.has_failed) {
            if self.wait != Wait::Ordinary {
                call.end_wait();
            }
            call.drop_caller(self.on_drop);
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("on_drop", &self.on_drop).finish_non_exhaustive()
    }
}
