//! When requests are due.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the requests of a stream are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Arrivals {
    /// Evenly. A server that is not saturated hardly ever sees two at once, which is kinder than any real traffic.
    Constant,
    /// At random and independently of one another, as callers are; the same sequence in every run.
    Poisson,
}

/// A rate, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) length: Duration,
    pub(crate) per_second: f64,
}

/// The due times of one stream, counted from the start.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    arrivals: Arrivals,
    /// One after the other; the last one goes on for ever.
    steps: Vec<Step>,
    /// The next one, in mean intervals.
    next: f64,
    random: u64,
}

impl Schedule {
    pub(crate) fn new(arrivals: Arrivals, per_second: f64) -> Self {
        Self::stepwise(arrivals, vec![Step { length: Duration::MAX, per_second }])
    }

    pub(crate) fn stepwise(arrivals: Arrivals, steps: Vec<Step>) -> Self {
        Self { arrivals, steps, next: 0.0, random: 0x9E37_79B9_7F4A_7C15 }
    }

    /// `Duration::MAX` if there is no rate at all.
    pub(crate) fn next(&self) -> Duration {
        let (mut due, mut intervals) = (0.0, self.next);
        for (position, Step { length, per_second }) in self.steps.iter().enumerate() {
            let of_step = length.as_secs_f64() * per_second;
            if intervals < of_step || position + 1 == self.steps.len() {
                return Duration::try_from_secs_f64(due + intervals / per_second).unwrap_or(Duration::MAX);
            }
            intervals -= of_step;
            due += length.as_secs_f64();
        }
        Duration::MAX
    }

    pub(crate) fn advance(&mut self) {
        self.next += match self.arrivals {
            Arrivals::Constant => 1.0,
            Arrivals::Poisson => -self.uniform().ln(),
        };
    }

    /// Over 0, at most 1. Marsaglia's xorshift: plenty for spacing requests, and repeatable.
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    }
}
