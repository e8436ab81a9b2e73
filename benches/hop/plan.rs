//! What is measured and for how long, as data.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The threads of every pool that has a size, and of the runtime `multi_thread`.
pub(crate) const THREADS: usize = 2;

/// Room for all calls at once, so that no pool of ours refuses any; the other variants have no bound at all.
pub(crate) const QUEUE_CAPACITY: usize = 8192;

/// When others had more of the cores than this, in percent, a scene is marked.
pub(crate) const TOLERATED_OTHERS: f64 = 10.0;

const CONCURRENCIES: [usize; 4] = [1, 16, 256, 4096];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Flavor {
    CurrentThread,
    MultiThread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// One caller; each call is timed.
    Sequential,
    /// Callers that call again at once; calls are counted, some are timed.
    Throughput,
}

/// Which threads run on which core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pin {
    /// The runtime on one, the pool on another.
    Cross,
    None,
    /// Everything on the same.
    One,
}

/// What all variants do in turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scene {
    pub(crate) runtime: Flavor,
    pub(crate) mode: Mode,
    pub(crate) pin: Pin,
    pub(crate) concurrency: usize,
}

impl Scene {
    pub(crate) const fn sequential(runtime: Flavor, pin: Pin) -> Self {
        Self { runtime, mode: Mode::Sequential, pin, concurrency: 1 }
    }

    pub(crate) const fn throughput(runtime: Flavor, concurrency: usize) -> Self {
        Self { runtime, mode: Mode::Throughput, pin: Pin::None, concurrency }
    }

    /// A latency without pins is one of two, on the same core or on another, as the scheduler likes; so on
    /// `current_thread` there are only pinned ones. The threads of `multi_thread` cannot all be on one side.
    pub(crate) fn all() -> Vec<Self> {
        let mut scenes = vec![
            Self::sequential(Flavor::CurrentThread, Pin::Cross),
            Self::sequential(Flavor::CurrentThread, Pin::One),
            Self::sequential(Flavor::MultiThread, Pin::None),
        ];
        for runtime in [Flavor::CurrentThread, Flavor::MultiThread] {
            scenes.extend(CONCURRENCIES.iter().map(|it| Self::throughput(runtime, *it)));
        }
        scenes
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mode {
            Mode::Sequential => "sequential, ",
            Mode::Throughput => "throughput, ",
        })?;
        match self.runtime {
            Flavor::CurrentThread => f.write_str("current_thread")?,
            Flavor::MultiThread => write!(f, "multi_thread({THREADS})")?,
        }
        match (self.mode, self.pin) {
            (Mode::Throughput, _) => write!(f, ", {} at once", self.concurrency),
            (_, Pin::Cross) => f.write_str(", across cores"),
            (_, Pin::None) => f.write_str(", not pinned"),
            (_, Pin::One) => f.write_str(", on one core"),
        }
    }
}

/// The parts of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Phases {
    pub(crate) warm_up: Duration,
    /// Counts allocations and is not timed, for counting them takes time.
    pub(crate) count: Duration,
    pub(crate) measure: Duration,
}

impl Phases {
    const SHORT: Self = Self {
        warm_up: Duration::from_millis(20),
        count: Duration::from_millis(20),
        measure: Duration::from_millis(80),
    };
    const LONG: Self = Self {
        warm_up: Duration::from_millis(100),
        count: Duration::from_millis(50),
        measure: Duration::from_millis(400),
    };
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) phases: Phases,
    /// A round ahead of the others that does not count.
    pub(crate) rehearsal: Option<Phases>,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self { rounds: 7, phases: Phases::LONG, rehearsal: Some(Phases::SHORT) }
    }

    /// Twelve variants in eleven scenes, twice in less than 60 s.
    pub(crate) fn quick() -> Self {
        Self { rounds: 2, phases: Phases::SHORT, rehearsal: None }
    }
}
