use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::state::OnCallerDrop;
use crate::pool::error::CallError;

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
    on_drop: OnCallerDrop,
    /// `true` once a call of the same pool has waited for this one.
    waits_nested: bool,
}

/// The part of a call that its handle uses, independent of the future's type.
pub(super) trait Join<T>: Send + Sync {
    /// Sets `waits_nested` if the polling thread waits and belongs to the call's pool, so that the
    /// caller must call [`end_wait`](Self::end_wait).
    fn poll_result(&self, cx: &mut Context<'_>, waits_nested: &mut bool) -> Poll<Joined<T>>;
    /// Records that the current thread no longer waits for this call.
    fn end_wait(&self);
    fn drop_caller(self: Arc<Self>, on_drop: OnCallerDrop);
    /// Cancels the call and returns `error`, or returns its result if it has just ended.
    fn reject_caller(self: Arc<Self>, error: CallError) -> Result<T, CallFailure>;
}

/// Result of [`Join::poll_result`].
pub(super) enum Joined<T> {
    Complete(Result<T, CallFailure>),
    /// The call has not ended, and the polling thread must stop waiting for it.
    Deadlocked,
}

impl<T> JoinHandle<T> {
    pub(super) fn new(call: Arc<dyn Join<T>>, on_drop: OnCallerDrop) -> Self {
        Self { call: Some(call), on_drop, waits_nested: false }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, CallFailure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { call, waits_nested, .. } = &mut *self;
        let call = call.as_ref().expect("a future of an offloaded call was polled after it completed");
        let joined = ready!(call.poll_result(cx, waits_nested));
        let result = match joined {
            Joined::Complete(result) => result,
            Joined::Deadlocked => call.clone().reject_caller(CallError::Deadlock),
        };
        if *waits_nested {
            call.end_wait();
        }
        self.call = None;
        Poll::Ready(result)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            if self.waits_nested {
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
