use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    runtime::Handle,
    time::{Sleep, sleep_until},
};

use crate::{
    panic::{catch_unwind, drop_payload},
    pool::deadline::Deadline,
};

/// Ends the wait of a caller at the deadline of its call.
#[derive(Debug)]
pub(super) struct DeadlineTimer {
    /// `false` if the wait has no end: the call has no deadline, or the caller has no timer.
    is_armed: bool,
    /// Allocated when the caller has to wait, so that neither a call without a deadline nor one
    /// that is complete by then needs it.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl DeadlineTimer {
    pub(super) fn new(is_armed: bool) -> Self {
        Self { is_armed, sleep: None }
    }

    /// Returns `true` once the deadline has passed; otherwise the task is woken then.
    ///
    /// Without tokio's timer it returns `false`: the call is answered when a worker takes it.
    #[inline]
    pub(super) fn has_fired(&mut self, deadline: impl FnOnce() -> Deadline, cx: &mut Context<'_>) -> bool {
        self.is_armed && self.poll(deadline, cx)
    }

    #[cold]
    fn poll(&mut self, deadline: impl FnOnce() -> Deadline, cx: &mut Context<'_>) -> bool {
        // Tokio's timer panics in a runtime without time enabled and in one that shuts down.
        let polled = catch_unwind(|| {
            if self.sleep.is_none() && Handle::try_current().is_ok() {
                self.sleep = deadline().at().map(|at| Box::pin(sleep_until(at)));
            }
            self.sleep.as_mut().map(|sleep| sleep.as_mut().poll(cx))
        });
        match polled {
            Ok(Some(polled)) => polled == Poll::Ready(()),
            Ok(None) => {
                self.is_armed = false;
                false
            }
            Err(payload) => {
                drop_payload(payload);
                *self = Self::new(false);
                false
            }
        }
    }
}
