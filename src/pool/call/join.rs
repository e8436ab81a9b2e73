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
}

/// The part of a call that its handle uses, independent of the future's type.
pub(super) trait Join<T>: Send + Sync {
    /// Returns [`CallError::Deadlock`], without an end of the call, if the polling thread belongs
    /// to the call's pool and must stop waiting.
    fn poll_result(&self, cx: &mut Context<'_>) -> Poll<Result<T, CallFailure>>;
    fn drop_caller(self: Arc<Self>, on_drop: OnCallerDrop);
    /// Cancels the call, whose caller gets `error`.
    fn reject_caller(self: Arc<Self>, error: CallError);
}

impl<T> JoinHandle<T> {
    pub(super) fn new(call: Arc<dyn Join<T>>, on_drop: OnCallerDrop) -> Self {
        Self { call: Some(call), on_drop }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, CallFailure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let call = self.call.as_ref().expect("a future of an offloaded call was polled after it completed");
        let result = ready!(call.poll_result(cx));
        if let Err(CallFailure::Rejected(CallError::Deadlock)) = result {
            call.clone().reject_caller(CallError::Deadlock);
        }
        self.call = None;
        Poll::Ready(result)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.drop_caller(self.on_drop);
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("on_drop", &self.on_drop).finish_non_exhaustive()
    }
}
