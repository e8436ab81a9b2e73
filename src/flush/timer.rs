//! A timer for the task that polls a transport.

use std::{
    pin::{Pin, pin},
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::unconstrained,
    time::{Instant, Sleep, sleep_until},
};

use crate::panic::catch_unwind;

#[derive(Default)]
pub(super) struct Timer {
    /// `None` before the timer is armed first, and without a timer of tokio.
    sleep: Option<Pin<Box<Sleep>>>,
    /// The task that `sleep` wakes. `None` while it is not armed, or was not polled since.
    waker: Option<Waker>,
    has_no_timer: bool,
}

impl Timer {
    /// Returns `true` if a task was registered with [`poll`](Self::poll) and the timer has not
    /// elapsed since.
    pub(super) fn is_armed(&self) -> bool {
        self.waker.is_some()
    }

    /// Returns `true` if [`poll`](Self::poll) would do nothing: the timer has not elapsed, and will
    /// wake this task.
    pub(super) fn will_wake(&self, waker: &Waker) -> bool {
        let is_elapsed = || self.sleep.as_ref().is_some_and(|sleep| sleep.is_elapsed());
        self.waker.as_ref().is_some_and(|current| current.will_wake(waker)) && !is_elapsed()
    }

    /// Lets the timer elapse after `delay`. Returns `false` outside a tokio runtime with time
    /// enabled.
    pub(super) fn arm(&mut self, delay: Duration) -> bool {
        let deadline = Instant::now() + delay;
        self.waker = None;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(deadline),
            None if self.has_no_timer => {}
            None => {
                // tokio panics if its timer is disabled, and cannot be asked.
                let sleep =
                    Handle::try_current().ok().and_then(|_| catch_unwind(|| Box::pin(sleep_until(deadline))).ok());
                self.has_no_timer = sleep.is_none();
                self.sleep = sleep;
            }
        }
        self.sleep.is_some()
    }

    /// Forgets the task and the time.
    pub(super) fn disarm(&mut self) {
        self.waker = None;
    }

    /// Returns `true` once after the timer has elapsed. Otherwise it will wake the task.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(sleep) = &mut self.sleep else { return false };
        // A task that has used up its budget would find the timer pending without its waker.
        let is_elapsed = pin!(unconstrained(sleep.as_mut())).poll(cx).is_ready();
        self.waker = (!is_elapsed).then(|| cx.waker().clone());
        is_elapsed
    }
}
