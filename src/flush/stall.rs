//! The timer of a connection, which bounds the time that a response waits for its client.

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

use super::connection::Connection;
use crate::panic::catch_unwind;

/// The time in which a response must make progress. A client that reads slowly makes progress, and
/// one that does not read for longer has probably stopped.
const INTERVAL: Duration = Duration::from_secs(30);

/// Checks the responses of a connection every [`INTERVAL`] while one is open.
#[derive(Default)]
pub(super) struct StallTimer {
    /// `None` before the first response, and without a timer of tokio.
    sleep: Option<Pin<Box<Sleep>>>,
    /// The task that `sleep` wakes. `None` while it is not armed.
    waker: Option<Waker>,
    has_no_timer: bool,
}

impl StallTimer {
    /// To be called when the transport is pending, because the task may sleep then. `accepted` is
    /// the number of bytes that the transport has accepted so far.
    pub(super) fn poll(&mut self, connection: &Connection, accepted: u64, cx: &mut Context<'_>) {
        match &self.waker {
            None if !connection.has_open() => return,
            // A poll that finds nothing new costs little: the timer keeps the waker.
            Some(waker) if waker.will_wake(cx.waker()) && !self.is_elapsed() => return,
            None => self.arm(),
            Some(_) => {}
        }
        while let Some(sleep) = &mut self.sleep {
            // A task that has used up its budget would find the timer pending without its waker.
            if pin!(unconstrained(sleep.as_mut())).poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return;
            }
            self.waker = None;
            connection.give_up_stalled(accepted);
            if !connection.has_open() {
                return;
            }
            self.arm();
        }
    }

    fn is_elapsed(&self) -> bool {
        self.sleep.as_ref().is_some_and(|sleep| sleep.is_elapsed())
    }

    fn arm(&mut self) {
        let deadline = Instant::now() + INTERVAL;
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
    }
}
