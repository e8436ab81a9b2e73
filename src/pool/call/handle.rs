use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::lifecycle::Departure;
use crate::pool::Rejection;

/// Why a call has no output.
pub(crate) enum Failure {
    Panicked(Box<dyn Any + Send>),
    Refused(Rejection),
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(_) => f.write_str("Panicked"),
            Self::Refused(rejection) => f.debug_tuple("Refused").field(rejection).finish(),
        }
    }
}

/// The caller's end of a call. Dropped early it cancels the call, unless that is detached.
pub(crate) struct Handle<T> {
    /// `None` after the output was given out.
    call: Option<Arc<dyn Answer<T>>>,
    departure: Departure,
}

/// What a handle needs of its call, whatever future that polls.
pub(super) trait Answer<T>: Send + Sync {
    fn poll_output(&self, cx: &mut Context<'_>) -> Poll<Result<T, Failure>>;
    fn leave(self: Arc<Self>, departure: Departure);
}

impl<T> Handle<T> {
    pub(super) fn new(call: Arc<dyn Answer<T>>, departure: Departure) -> Self {
        Self { call: Some(call), departure }
    }
}

impl<T> Future for Handle<T> {
    type Output = Result<T, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let call = self.call.as_ref().expect("the future of an offloaded call is not polled after it ended");
        let output = ready!(call.poll_output(cx));
        self.call = None;
        Poll::Ready(output)
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.leave(self.departure);
        }
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("departure", &self.departure).finish_non_exhaustive()
    }
}
