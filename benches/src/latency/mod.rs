//! Measures the latency of `/ping` while the same server does heavy jobs: real axum servers, each
//! in a process of its own, and an open-loop load generator.
//!
//! [`session`] measures the rows of a [`plan`](plan::rows). A round of a row becomes a [`Sample`];
//! tables, goals and [`pictures`] are computed from rows alone, so that they can also be computed
//! from a JSON file.

use std::{fmt, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

mod client;
mod generator;
pub mod pictures;
pub mod plan;
pub mod report;
mod sample;
mod server;
pub mod session;
pub mod target;

pub use self::{
    generator::{Arrivals, Step, pace, with_priority},
    sample::{Sample, Slice},
    server::{ServerOrder, Work, serve},
};

/// A row of this benchmark.
pub type Row = crate::Row<Setting, Sample>;

/// `/ping` requests per second: enough for a p99.9 within seconds, and cheap for the server.
pub const PING_RATE: f64 = 500.0;

/// The CPU time of a computing job on an idle core.
pub const JOB: Duration = Duration::from_millis(5);

/// The duration of a sleeping job.
pub const SLEEPING_JOB: Duration = Duration::from_millis(50);

/// Sleeping jobs per second, so that ten are in flight.
pub const SLEEPING_RATE: f64 = 200.0;

/// The load before and after the overload of a recovery, in percent of the capacity.
pub const BUSY_PCT: u32 = 78;

/// The load during the overload of a recovery, in percent of the capacity.
pub const OVERLOAD_PCT: u32 = 300;

/// Time from the intended start of a job after which its result is of no use to the caller.
pub const JOB_TIMEOUT: Duration = Duration::from_millis(200);

/// Maximum p99 of the generator's own lateness. If it is higher, the generator measured itself and
/// not the server.
pub const TOLERATED_LATENESS: Duration = Duration::from_millis(5);

/// The work that the server does while `/ping` is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scene {
    /// Jobs that compute, at some percentage of the capacity.
    Cpu,
    /// Jobs that sleep.
    Sleeping,
    /// A temporary overload by jobs that compute.
    Recovery,
    /// Jobs that compute, on a server that has the time of one core, for different sizes of runtime
    /// and pool.
    Quota,
    /// Jobs of a server that the user runs.
    #[value(skip)]
    Target,
}

impl Scene {
    /// All scenes, in the order of a report.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Sleeping, Self::Recovery, Self::Quota, Self::Target];
}

/// Everything that the rows of a table have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The scene.
    pub scene: Scene,
    /// The load in percent of the capacity, if it is defined by the capacity.
    pub load_pct: Option<u32>,
    /// The number of rounds to measure.
    #[serde(skip)]
    pub round_count: usize,
    /// The parts of each run.
    #[serde(flatten)]
    pub phases: Phases,
    /// The overload of a recovery.
    pub overload: Option<Overload>,
    /// The rate of jobs outside of the overload.
    pub jobs_per_second: f64,
    /// The conditions of the whole session.
    #[serde(flatten)]
    pub conditions: Conditions,
}

/// The lengths of the parts of one run, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// Requests due in this time are sent and not counted.
    pub warm_up_ms: u64,
    /// Requests due in this time are counted.
    pub measure_ms: u64,
    /// How long the run waits for the last responses. Requests that are still open then count with
    /// their age.
    pub grace_ms: u64,
}

/// The start and the length of an overload, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overload {
    /// From the end of the warm-up until the overload begins.
    pub after_ms: u64,
    /// The length of the overload.
    pub length_ms: u64,
}

/// The conditions that all figures of a session depend on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// `true` if jobs arrive at random instead of evenly spaced.
    pub poisson: bool,
    /// The jobs per second that are 100 %, measured before the first round.
    pub capacity_per_second: Option<f64>,
    /// The capacity in jobs per second, measured after the last round.
    pub capacity_after_per_second: Option<f64>,
    /// The number of cores.
    pub cores: usize,
    /// The operating system.
    pub system: String,
    /// The priority of the generator.
    pub priority: String,
}

impl Setting {
    /// Returns how long the run is observed after the overload.
    pub fn observed_after_overload_ms(&self) -> Option<u64> {
        let Overload { after_ms, length_ms } = self.overload?;
        Some(self.phases.measure_ms - after_ms - length_ms)
    }

    /// Returns the change of the capacity during the session, in percent, if it is too large for
    /// the stated load to be correct.
    fn drift_pct(&self) -> Option<f64> {
        /// Maximum relative change of the capacity.
        const TOLERATED_DRIFT: f64 = 0.1;
        let (before, after) = (self.conditions.capacity_per_second?, self.conditions.capacity_after_per_second?);
        let drift = (after / before - 1.0).abs();
        (drift > TOLERATED_DRIFT).then_some(drift * 100.0)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scene {
            Scene::Cpu => "cpu",
            Scene::Sleeping => "sleeping",
            Scene::Recovery => "recovery",
            Scene::Quota => "quota",
            Scene::Target => "target",
        })?;
        self.load_pct.map_or(Ok(()), |load| write!(f, ", {load} %"))
    }
}

/// Returns `true` if the generator was punctual enough in every round of the row to judge the
/// server.
fn is_reliable(row: &Row) -> bool {
    lateness_ms(row) <= TOLERATED_LATENESS.as_secs_f64() * 1e3
}

/// Returns the p99 of the generator's lateness in the worst round.
fn lateness_ms(row: &Row) -> f64 {
    row.spread(|sample| sample.generator_late_p99_ms).map_or(0.0, |late| late.max)
}

/// Returns `true` if something other than the server affected the row.
fn is_doubtful(row: &Row) -> bool {
    !is_reliable(row) || row.is_disturbed() || row.scene.drift_pct().is_some()
}
