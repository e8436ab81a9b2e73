//! What is measured and for how long, as data.

use std::time::Duration;

use crate::arrivals::Arrivals;

/// `/ping` requests a second in every run: enough for a p99.9 within seconds, little enough to cost the server nothing.
pub(crate) const PING_RATE: f64 = 500.0;

/// Jobs offered, in percent of what the machine can do: busy but keeping up, and more than anybody can do.
pub(crate) const LOADS: [u32; 2] = [78, 130];

/// The CPU time of one job on an idle core.
pub(crate) const JOB: Duration = Duration::from_millis(5);

/// A job that was not answered this soon after its intended start was of no use to its caller.
pub(crate) const DEADLINE: Duration = Duration::from_millis(200);

/// A generator later than this (p99) measured itself, not the server.
pub(crate) const TOLERATED_LATENESS: Duration = Duration::from_millis(5);

/// When others had more of the cores than this, in percent, even the load was not what the row says.
pub(crate) const TOLERATED_OTHERS: f64 = 10.0;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// How the jobs arrive; pings are always evenly spaced.
    pub(crate) jobs: Arrivals,
    pub(crate) phases: Phases,
    pub(crate) capacity: Duration,
    /// Runs that may be done again because the generator was late, in total.
    pub(crate) repeats: usize,
}

/// The parts of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phases {
    /// Requests due in it are sent and not counted.
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
    /// How long the last requests may take, at least the deadline; whatever is open then counts at its age.
    pub(crate) grace: Duration,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self {
            rounds: 3,
            jobs: Arrivals::Constant,
            phases: Phases {
                warm_up: Duration::from_secs(2),
                measure: Duration::from_secs(10),
                grace: Duration::from_secs(2),
            },
            capacity: Duration::from_secs(5),
            repeats: usize::MAX,
        }
    }

    /// Seven variants at two loads in less than 60 s, with three runs done again.
    pub(crate) fn quick() -> Self {
        Self {
            rounds: 1,
            jobs: Arrivals::Constant,
            phases: Phases {
                warm_up: Duration::from_millis(500),
                measure: Duration::from_millis(2300),
                grace: Duration::from_millis(250),
            },
            capacity: Duration::from_millis(1000),
            repeats: 3,
        }
    }
}
