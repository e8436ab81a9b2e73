//! What is measured and for how long, as data.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// When others had more of the cores than this, in percent, a row is marked.
pub(crate) const TOLERATED_OTHERS: f64 = 10.0;

/// How many call at once: alone, one pays the whole way to the disk; of many, those that wait share it.
pub(crate) const CLIENTS: [usize; 2] = [1, 64];

/// The threads of the runtime.
pub(crate) const THREADS: usize = 2;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// Ids that were given out.
    Accept,
    /// Durable jobs that were worked off.
    Drain,
    /// Durable jobs that were taken.
    Enqueue,
}

/// Where records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Store {
    Memory,
    Postgres,
    Sqlite,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drain => "drain",
            Self::Enqueue => "enqueue",
        })
    }
}

/// The parts of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Phases {
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
    /// A client that has made its part of so many calls stops, whatever the time: what a run writes is bounded.
    pub(crate) calls: usize,
    /// What is drained.
    pub(crate) jobs: usize,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) phases: Phases,
}

impl Plan {
    pub(crate) fn full() -> Self {
        let phases = Phases {
            warm_up: Duration::from_millis(200),
            measure: Duration::from_secs(3),
            calls: 1_000_000,
            jobs: 5000,
        };
        Self { rounds: 5, phases }
    }

    pub(crate) fn quick() -> Self {
        let phases = Phases {
            warm_up: Duration::from_millis(50),
            measure: Duration::from_millis(500),
            calls: 200_000,
            jobs: 500,
        };
        Self { rounds: 2, phases }
    }
}
