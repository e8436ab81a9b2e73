//! What became of one stream of requests.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::latency::{BoxError, client::Answer, plan::DEADLINE};

/// Three digits, and no latency is too long for it: an hour is more than a run lasts.
pub(crate) fn microseconds() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("constant bounds that the crate allows")
}

pub(crate) fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Its intended start, from the start of the generator.
    pub(crate) due: Duration,
    /// From the intended start to the answer, or to the end of the run if there was none.
    pub(crate) latency: Duration,
    pub(crate) end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    /// Refused because it had stood in a queue for too long.
    Expired,
    /// The connection failed.
    Failed,
    /// The run ended first.
    Open,
    /// Any other answer that is no success.
    Refused,
}

/// The requests of one stream, in the order in which they were due.
///
/// Only a success is an answer. Whatever got none counts in `latency` at the age it had when the run ended, so that a server
/// cannot look quick by failing.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) fates: Vec<Fate>,
    start: Instant,
    /// Of all requests, and of those that were answered. Complete once it is closed.
    pub(crate) latency: Histogram<u64>,
    pub(crate) answered: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new(start: Instant) -> Self {
        Self { fates: Vec::new(), start, latency: microseconds(), answered: microseconds() }
    }

    /// Returns the number of the request in this stream.
    pub(crate) fn offer(&mut self, due: Instant) -> usize {
        self.fates.push(Fate { due: due.duration_since(self.start), latency: Duration::ZERO, end: End::Open });
        self.fates.len() - 1
    }

    pub(crate) fn answer(&mut self, number: usize, at: Instant, outcome: &Result<Answer, BoxError>) {
        let Some(fate) = self.fates.get_mut(number) else { return };
        fate.end = match outcome {
            Ok(Answer::Success) => End::Answered,
            Ok(Answer::Expired) => End::Expired,
            Ok(Answer::Other(_)) => End::Refused,
            Err(_) => End::Failed,
        };
        fate.latency = at.duration_since(self.start).saturating_sub(fate.due);
    }

    /// Counts the rest at its age.
    pub(crate) fn close(&mut self, now: Instant) {
        let now = now.duration_since(self.start);
        for fate in &mut self.fates {
            if fate.end == End::Answered {
                record(&mut self.answered, fate.latency);
            } else {
                fate.latency = now.saturating_sub(fate.due);
            }
            record(&mut self.latency, fate.latency);
        }
    }

    pub(crate) fn offered(&self) -> u64 {
        self.fates.len() as u64
    }

    pub(crate) fn count(&self, end: End) -> u64 {
        self.fates.iter().filter(|fate| fate.end == end).count() as u64
    }

    pub(crate) fn within_deadline(&self) -> u64 {
        self.fates.iter().filter(|fate| fate.end == End::Answered && fate.latency <= DEADLINE).count() as u64
    }

    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    /// None if nothing was answered.
    pub(crate) fn answered_ms(&self, quantile: f64) -> Option<f64> {
        (!self.answered.is_empty()).then(|| self.answered.value_at_quantile(quantile) as f64 / 1e3)
    }
}
