//! What is measured and for how long, as data.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// When others had more of the cores than this, in percent, a table is marked.
pub(crate) const TOLERATED_OTHERS: f64 = 10.0;

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Protocol {
    /// One after the other on a connection that stays open.
    #[serde(rename = "http1")]
    Http1,
    /// [`Self::at_once`] in one piece, and on when all are answered.
    #[serde(rename = "http1/pipelined")]
    Http1Pipelined,
    /// So many streams.
    #[serde(rename = "http2")]
    Http2,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Http1Pipelined, Self::Http2];

    /// How many requests are under way.
    pub(crate) fn at_once(self) -> usize {
        match self {
            Self::Http1 => 1,
            Self::Http1Pipelined => 16,
            Self::Http2 => 32,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "http1",
            Self::Http1Pipelined => "http1/pipelined",
            Self::Http2 => "http2",
        })?;
        write!(f, ", {} at once", self.at_once())
    }
}

/// The parts of one round of a protocol. In each all variants take turns.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Phases {
    pub(crate) warm_up: Duration,
    /// Counts allocations and is not timed, for counting them takes time.
    pub(crate) count: Duration,
    /// A turn of a variant, and how many each has. Short ones: whatever else the machine does meets all of them alike.
    pub(crate) turn: Duration,
    pub(crate) turns: u32,
}

impl Phases {
    const SHORT: Self = Self {
        warm_up: Duration::from_millis(20),
        count: Duration::from_millis(5),
        turn: Duration::from_millis(10),
        turns: 8,
    };
    const LONG: Self = Self {
        warm_up: Duration::from_millis(50),
        count: Duration::from_millis(20),
        turn: Duration::from_millis(10),
        turns: 30,
    };
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) phases: Phases,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self { rounds: 15, phases: Phases::LONG }
    }

    pub(crate) fn quick() -> Self {
        Self { rounds: 3, phases: Phases::SHORT }
    }
}
