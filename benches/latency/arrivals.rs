//! When requests are due.

use std::{fmt, time::Duration};

/// How the requests of a stream are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrivals {
    /// Evenly. A server that is not saturated hardly ever sees two at once, which is kinder than any real traffic.
    Constant,
    /// At random and independently of one another, as callers are; the same sequence in every run.
    Poisson,
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "evenly spaced",
            Self::Poisson => "Poisson arrivals",
        })
    }
}

/// The due times of one stream, counted from the start.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    arrivals: Arrivals,
    per_second: f64,
    /// The next one, in mean intervals.
    next: f64,
    random: u64,
}

impl Schedule {
    pub(crate) fn new(arrivals: Arrivals, per_second: f64) -> Self {
        Self { arrivals, per_second, next: 0.0, random: 0x9E37_79B9_7F4A_7C15 }
    }

    pub(crate) fn next(&self) -> Duration {
        Duration::from_secs_f64(self.next / self.per_second)
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
