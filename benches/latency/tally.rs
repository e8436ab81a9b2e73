//! The figures of one stream of requests.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use hyper::StatusCode;

use crate::{BoxError, plan::DEADLINE};

/// Three digits, and no latency is too long for it: an hour is more than a run lasts.
pub(crate) fn microseconds() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("constant bounds that the crate allows")
}

pub(crate) fn record(histogram: &mut Histogram<u64>, duration: Duration) {
    histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

/// What became of the requests of one stream.
///
/// Only a 200 is an answer. Whatever got none counts in `latency` at the age it had when the run ended, so that a server
/// cannot look quick by failing.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) latency: Histogram<u64>,
    pub(crate) offered: u64,
    pub(crate) ok: u64,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    pub(crate) within_deadline: u64,
    /// The intended starts of what has not been answered with a 200.
    open: HashMap<u64, Instant>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            latency: microseconds(),
            offered: 0,
            ok: 0,
            refused: 0,
            failed: 0,
            within_deadline: 0,
            open: HashMap::new(),
        }
    }

    pub(crate) fn offer(&mut self, number: u64, due: Instant) {
        self.offered += 1;
        self.open.insert(number, due);
    }

    /// Takes what came of the request with this number, if it is one that counts.
    pub(crate) fn answer(&mut self, number: u64, at: Instant, outcome: &Result<StatusCode, BoxError>) {
        let Some(due) = self.open.get(&number) else { return };
        match outcome {
            Ok(StatusCode::OK) => {
                let latency = at.duration_since(*due);
                self.ok += 1;
                self.within_deadline += u64::from(latency <= DEADLINE);
                record(&mut self.latency, latency);
                self.open.remove(&number);
            }
            Ok(_) => self.refused += 1,
            Err(_) => self.failed += 1,
        }
    }

    /// Counts the rest at its age.
    pub(crate) fn close(&mut self, now: Instant) {
        for (_, due) in self.open.drain() {
            record(&mut self.latency, now.duration_since(due));
        }
    }

    pub(crate) fn unanswered(&self) -> u64 {
        self.offered - self.ok
    }

    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(crate) fn within_deadline_percent(&self) -> f64 {
        100.0 * self.within_deadline as f64 / self.offered.max(1) as f64
    }
}
