//! What is measured and for how long, as data.

use std::{fmt, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::latency::arrivals::{Arrivals, Step};

/// `/ping` requests a second in every run: enough for a p99.9 within seconds, little enough to cost the server nothing.
pub(crate) const PING_RATE: f64 = 500.0;

/// The CPU time of one job on an idle core.
pub(crate) const JOB: Duration = Duration::from_millis(5);

/// The time of one job that sleeps, and how many of them are due a second: ten at once.
pub(crate) const SLEEPING_JOB: Duration = Duration::from_millis(50);
pub(crate) const SLEEPING_RATE: f64 = 200.0;

/// Jobs offered before and after the overload of a recovery, in percent of what the machine can do; and during it.
pub(crate) const BUSY: u32 = 78;
pub(crate) const OVERLOAD: u32 = 300;

/// A job that was not answered this soon after its intended start was of no use to its caller.
pub(crate) const DEADLINE: Duration = Duration::from_millis(200);

/// A generator later than this (p99) measured itself, not the server.
pub(crate) const TOLERATED_LATENESS: Duration = Duration::from_millis(5);

/// When others had more of the cores than this, in percent, even the load was not what the row says.
pub(crate) const TOLERATED_OTHERS: f64 = 10.0;

/// What goes on while `/ping` is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scene {
    /// Jobs that compute, at some percentage of the capacity.
    Cpu,
    /// Three times as many jobs as the machine can do, for a while.
    Recovery,
    /// Jobs that sleep.
    Sleeping,
    /// A server of the user's.
    #[value(skip)]
    Target,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Recovery => "recovery",
            Self::Sleeping => "sleeping",
            Self::Target => "target",
        })
    }
}

/// How long and how often.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How the jobs arrive; pings are always evenly spaced.
    pub(crate) jobs: Arrivals,
    pub(crate) parts: Vec<Part>,
    pub(crate) capacity: Duration,
    /// Runs that may be done again because the generator was late, in total.
    pub(crate) repeats: usize,
}

/// Runs that belong together: they are measured round by round, and compared with one another.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) scene: Scene,
    /// In percent of the capacity. Jobs that sleep have a rate of their own.
    pub(crate) loads: Vec<Option<u32>>,
    /// The names of those who take part.
    pub(crate) variants: &'static [&'static str],
    pub(crate) rounds: usize,
    pub(crate) phases: Phases,
    /// When, counted from the end of the warm-up, and how long there are too many jobs.
    pub(crate) overload: Option<Overload>,
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

#[derive(Debug, Clone, Copy)]
pub(crate) struct Overload {
    pub(crate) after: Duration,
    pub(crate) length: Duration,
}

const ALL: &[&str] = &[
    "inline",
    "spawn_blocking",
    "spawn_blocking/capped",
    "tower-resilience",
    "offload/threads",
    "offload/rayon",
    "offload/tokio",
    "offload/bounded",
    "offload/codel",
    "offload/nice",
];
/// Rayon and tokio lend threads to the same queue that `offload/threads` has, and niceness does not shorten it: they recover
/// alike.
const RECOVERING: &[&str] = &[
    "inline",
    "spawn_blocking",
    "spawn_blocking/capped",
    "tower-resilience",
    "offload/threads",
    "offload/bounded",
    "offload/codel",
];
const SLEEPING: &[&str] = &["inline", "spawn_blocking", "spawn_blocking/capped", "offload/threads", "offload/blocking"];
const QUICK: &[&str] = &[
    "inline",
    "spawn_blocking",
    "spawn_blocking/capped",
    "offload/threads",
    "offload/bounded",
    "offload/codel",
    "offload/nice",
];
const QUICK_RECOVERING: &[&str] = &["spawn_blocking", "offload/threads", "offload/bounded", "offload/codel"];
const QUICK_SLEEPING: &[&str] = &["inline", "spawn_blocking", "offload/threads", "offload/blocking"];

impl Plan {
    /// A quarter of an hour.
    pub(crate) fn full() -> Self {
        let overload = Overload { after: Duration::from_secs(2), length: Duration::from_secs(10) };
        Self {
            jobs: Arrivals::Constant,
            parts: vec![
                Part::cpu(&[78, 130, 200], ALL, 3, Phases::of_ms(1000, 3500, 500)),
                // For the left end of the curve, where little happens.
                Part::cpu(&[25, 50], ALL, 1, Phases::of_ms(500, 2500, 300)),
                Part::sleeping(SLEEPING, 2, Phases::of_ms(1000, 3000, 500)),
                Part::recovery(RECOVERING, 2, overload, Phases::of_ms(1000, 16_000, 300)),
            ],
            capacity: Duration::from_secs(5),
            repeats: 8,
        }
    }

    /// Some variants, one short round of everything, in little over a minute with three runs done again.
    pub(crate) fn quick() -> Self {
        let overload = Overload { after: Duration::from_millis(1000), length: Duration::from_millis(2500) };
        Self {
            jobs: Arrivals::Constant,
            parts: vec![
                Part::cpu(&[78, 130, 200], QUICK, 1, Phases::of_ms(300, 1200, 250)),
                Part::sleeping(QUICK_SLEEPING, 1, Phases::of_ms(300, 900, 250)),
                Part::recovery(QUICK_RECOVERING, 1, overload, Phases::of_ms(300, 5000, 250)),
            ],
            capacity: Duration::from_millis(1000),
            repeats: 3,
        }
    }

    /// Leaves out the other scenes. All of them stay if none is named.
    pub(crate) fn keep(&mut self, scenes: &[Scene]) {
        self.parts.retain(|part| scenes.is_empty() || scenes.contains(&part.scene));
    }
}

impl Part {
    fn cpu(loads: &[u32], variants: &'static [&'static str], rounds: usize, phases: Phases) -> Self {
        let loads = loads.iter().copied().map(Some).collect();
        Self { scene: Scene::Cpu, loads, variants, rounds, phases, overload: None }
    }

    fn sleeping(variants: &'static [&'static str], rounds: usize, phases: Phases) -> Self {
        Self { scene: Scene::Sleeping, loads: vec![None], variants, rounds, phases, overload: None }
    }

    fn recovery(variants: &'static [&'static str], rounds: usize, overload: Overload, phases: Phases) -> Self {
        let overload = Some(overload);
        Self { scene: Scene::Recovery, loads: vec![Some(BUSY)], variants, rounds, phases, overload }
    }

    /// How many jobs are due when, where `capacity` jobs a second are 100 %.
    pub(crate) fn job_rates(&self, load: Option<u32>, capacity: f64) -> Vec<Step> {
        let rate = |percent: u32| capacity * f64::from(percent) / 100.0;
        let usual = load.map_or(SLEEPING_RATE, rate);
        let for_ever = Step { length: Duration::MAX, per_second: usual };
        match self.overload {
            Some(Overload { after, length }) => vec![
                Step { length: self.phases.warm_up + after, per_second: usual },
                Step { length, per_second: rate(OVERLOAD) },
                for_ever,
            ],
            None => vec![for_ever],
        }
    }
}

impl Phases {
    pub(crate) const fn of_ms(warm_up: u64, measure: u64, grace: u64) -> Self {
        Self {
            warm_up: Duration::from_millis(warm_up),
            measure: Duration::from_millis(measure),
            grace: Duration::from_millis(grace),
        }
    }
}
