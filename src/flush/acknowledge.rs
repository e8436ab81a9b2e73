//! Responses that were flushed, and wait until the peer's TCP has acknowledged them.
//!
//! The kernel reports no acknowledgement as an event, so the connection's task checks: at the
//! flush, after a round trip, and then at intervals that double. A wait has a limit, and so has the
//! number of responses that wait.

use std::{collections::VecDeque, task::Context, time::Duration};

use tokio::time::Instant;

use super::{connection::Connection, state::Completions, tcp::Progress, timer::Timer};
use crate::after_response::{FlushOutcome, FlushWaiter};

/// The maximum time from the flush to the acknowledgement. A peer that is reachable acknowledges
/// within a few round trips, unless it does not read and its receive buffer is full.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum time from the shutdown of the transport to the acknowledgement. It delays the close
/// of the connection, so it is as long as that for an unread request in `axum::serve`.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of the time between two checks. The timer of tokio has a resolution of a millisecond; a
/// quarter of a second is longer than the kernel of a peer delays an acknowledgement.
const MIN_DELAY: Duration = Duration::from_millis(1);
const MAX_DELAY: Duration = Duration::from_millis(250);

/// The maximum number of responses that wait on a connection. Others keep the outcome flushed.
pub(super) const MAX_RESPONSES: usize = 1024;

/// A response that was flushed, with the length of its body on the wire if that is known.
pub(super) type FlushedResponse = (FlushWaiter, Option<u64>);

/// The responses of a connection that wait for an acknowledgement.
#[derive(Default)]
pub(super) struct Acknowledgements {
    responses: Queue<FlushedResponse>,
    timer: Timer,
    /// The time between the last check and the next one.
    delay: Duration,
    is_shut_down: bool,
}

impl Acknowledgements {
    /// Adds responses that were flushed just now, and completes those that are acknowledged.
    ///
    /// `progress` was read after the flush and before any later write, so every byte of these
    /// responses is before `Progress::written`. `None` if it is unknown.
    pub(super) fn add(
        &mut self,
        responses: Vec<FlushedResponse>,
        progress: Option<Progress>,
        completions: &mut Completions,
    ) {
        let now = Instant::now();
        if let (true, Some(progress)) = (self.responses.is_empty(), progress) {
            self.delay = progress.round_trip.clamp(MIN_DELAY, MAX_DELAY);
            self.timer.disarm();
        }
        for response in responses {
            match progress {
                Some(progress) if self.responses.len() < MAX_RESPONSES => {
                    self.responses.push(response, progress.written, now + TIMEOUT);
                }
                _ => push_unacknowledged(completions, response),
            }
        }
        self.check(now, progress, completions);
    }

    /// Completes the responses that the peer has acknowledged and those that have waited for too
    /// long, if a check is due or `is_forced`. Otherwise the timer will wake the task.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        is_forced: bool,
        connection: &Connection,
        progress: impl Fn() -> Option<Progress>,
    ) {
        if self.responses.is_empty() || (!is_forced && self.timer.will_wake(cx.waker())) {
            return;
        }
        let mut is_due = is_forced | (self.timer.is_armed() && self.timer.poll(cx));
        loop {
            let now = Instant::now();
            if is_due {
                let mut completions = Completions::default();
                self.check(now, progress(), &mut completions);
                connection.complete_flushed(completions);
            }
            let Some(deadline) = self.responses.next_deadline() else { return };
            if !self.timer.is_armed() {
                let is_armed = self.timer.arm(self.delay.min(deadline.saturating_duration_since(now)));
                self.delay = (self.delay * 2).min(MAX_DELAY);
                if !is_armed {
                    return self.give_up(connection);
                }
            }
            is_due = self.timer.poll(cx);
            if !is_due {
                return;
            }
        }
    }

    /// The transport was shut down. Responses wait a shorter time from now on.
    pub(super) fn shut_down(&mut self) {
        self.is_shut_down = true;
        self.responses.limit(Instant::now() + SHUTDOWN_TIMEOUT);
        self.timer.disarm();
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.is_shut_down
    }

    /// Returns `true` if no response waits.
    pub(super) fn is_empty(&self) -> bool {
        self.responses.is_empty()
    }

    /// Completes all responses as flushed.
    pub(super) fn give_up(&mut self, connection: &Connection) {
        let mut completions = Completions::default();
        self.responses.take_all(|response| push_unacknowledged(&mut completions, response));
        connection.complete_flushed(completions);
    }

    fn check(&mut self, now: Instant, progress: Option<Progress>, completions: &mut Completions) {
        if let Some(progress) = progress {
            self.responses.take_acknowledged(progress.acknowledged, |(waiter, body_bytes)| {
                completions.push(waiter, FlushOutcome::Acknowledged { body_bytes });
            });
        }
        if progress.is_none_or(|progress| progress.is_closed) {
            self.responses.take_all(|response| push_unacknowledged(completions, response));
        } else {
            self.responses.take_expired(now, |response| push_unacknowledged(completions, response));
        }
    }
}

fn push_unacknowledged(completions: &mut Completions, (waiter, body_bytes): FlushedResponse) {
    completions.unacknowledged += 1;
    completions.push(waiter, FlushOutcome::Flushed { body_bytes });
}

/// Responses `R` in the order of their flushes.
///
/// Invariant: neither the ends nor the deadlines decrease from one response to the next, because
/// the position of a socket does not.
#[derive(Debug)]
struct Queue<R>(VecDeque<Waiting<R>>);

#[derive(Debug)]
struct Waiting<R> {
    response: R,
    /// The response is acknowledged if the peer has acknowledged all bytes up to this position.
    end: u64,
    deadline: Instant,
}

impl<R> Queue<R> {
    fn push(&mut self, response: R, end: u64, deadline: Instant) {
        self.0.push_back(Waiting { response, end, deadline });
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.front().map(|waiting| waiting.deadline)
    }

    fn limit(&mut self, deadline: Instant) {
        self.0.iter_mut().for_each(|waiting| waiting.deadline = waiting.deadline.min(deadline));
    }

    fn take_acknowledged(&mut self, acknowledged: u64, take: impl FnMut(R)) {
        self.take_while(|waiting| waiting.end <= acknowledged, take);
    }

    fn take_expired(&mut self, now: Instant, take: impl FnMut(R)) {
        self.take_while(|waiting| waiting.deadline <= now, take);
    }

    fn take_all(&mut self, take: impl FnMut(R)) {
        self.take_while(|_| true, take);
    }

    fn take_while(&mut self, is_taken: impl Fn(&Waiting<R>) -> bool, mut take: impl FnMut(R)) {
        while self.0.front().is_some_and(&is_taken) {
            if let Some(waiting) = self.0.pop_front() {
                take(waiting.response);
            }
        }
    }
}

impl<R> Default for Queue<R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

#[cfg(test)]
mod tests;
