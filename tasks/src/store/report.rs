//! Events for errors that responses do not disclose.

#[cfg(feature = "tracing")]
use std::time::Duration;

#[cfg(feature = "tracing")]
use tokio::time::Instant;

use super::StoreError;
#[cfg(feature = "tracing")]
use crate::sync::{Mutex, lock};

impl StoreError {
    /// Logs the error with all its causes. Does nothing without feature `tracing`.
    pub(crate) fn report(&self) {
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::ERROR, "{}", self.with_causes());
    }

    /// Logs the error of a response, like [`report`](Self::report). Clients send any number of
    /// requests, so of many errors of one kind only some are logged.
    pub(crate) fn report_response(&self) {
        #[cfg(feature = "tracing")]
        match lock(&LIMITS[self.kind as usize]).admit(Instant::now()) {
            Some(0) => self.report(),
            Some(omitted) => tracing::event!(tracing::Level::ERROR, omitted, "{}", self.with_causes()),
            None => {}
        }
    }
}

/// Maximum number of events for responses within [`INTERVAL`], for each kind of error.
#[cfg(feature = "tracing")]
const MAX_EVENTS: u32 = 10;
#[cfg(feature = "tracing")]
const INTERVAL: Duration = Duration::from_secs(1);

/// One limit for each kind of error, so that frequent errors do not hide others.
#[cfg(feature = "tracing")]
static LIMITS: [Mutex<Limit>; super::error::KINDS] = [const { Mutex::new(Limit::NEW) }; super::error::KINDS];

/// Limits the rate of events.
#[cfg(feature = "tracing")]
#[derive(Debug)]
struct Limit {
    /// Begin of the current interval.
    since: Option<Instant>,
    /// Number of events in the current interval.
    events: u32,
    /// Number of events that were omitted since the last one.
    omitted: u64,
}

#[cfg(feature = "tracing")]
impl Limit {
    const NEW: Self = Self { since: None, events: 0, omitted: 0 };

    /// Returns `None` if the event must be omitted, otherwise the number of events that were
    /// omitted before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL) {
            (self.since, self.events) = (Some(now), 0);
        }
        if self.events >= MAX_EVENTS {
            self.omitted = self.omitted.saturating_add(1);
            return None;
        }
        self.events += 1;
        Some(std::mem::take(&mut self.omitted))
    }
}

#[cfg(all(test, feature = "tracing"))]
mod tests {
    use super::*;

    #[test]
    fn omitted_events_are_counted_in_the_next_one() {
        let (mut limit, now) = (Limit::NEW, Instant::now());
        let admitted: Vec<_> = (0..1000).filter_map(|_| limit.admit(now)).collect();
        assert_eq!(admitted, [0; MAX_EVENTS as usize]);
        assert_eq!(limit.admit(now + INTERVAL), Some(1000 - u64::from(MAX_EVENTS)));
        assert_eq!(limit.admit(now + INTERVAL), Some(0));
    }
}
