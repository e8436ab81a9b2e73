//! The bound on the time that a response waits for its client.

use std::{task::Context, time::Duration};

use super::{connection::Connection, timer::Timer};

/// The time in which a response must make progress. A client that reads slowly makes progress, and
/// one that does not read for longer has probably stopped.
const INTERVAL: Duration = Duration::from_secs(30);

/// Checks the responses of a connection every [`INTERVAL`] while one is open.
#[derive(Default)]
pub(super) struct StallTimer {
    timer: Timer,
}

impl StallTimer {
    /// To be called when the transport is pending, because the task may sleep then. `accepted` is
    /// the number of bytes that the transport has accepted so far.
    pub(super) fn poll(&mut self, connection: &Connection, accepted: u64, cx: &mut Context<'_>) {
        if self.timer.is_armed() {
            // A poll that finds nothing new costs little: the timer keeps the waker.
            if self.timer.will_wake(cx.waker()) {
                return;
            }
        } else if !connection.has_open() || !self.timer.arm(INTERVAL) {
            return;
        }
        while self.timer.poll(cx) {
            connection.give_up_stalled(accepted);
            if !connection.has_open() || !self.timer.arm(INTERVAL) {
                return;
            }
        }
    }
}
