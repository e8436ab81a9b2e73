//! The figures of one round of a row.

use std::{ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    JOB_TIMEOUT, Overload, Scene, Setting,
    generator::{End, Observation, Outcome, microseconds},
};

/// The number of jobs in a window: the fewest for which the p99 is not simply the longest latency.
pub(super) const WINDOW: usize = 100;

/// A p99 of at most this multiple of the p99 before the overload is normal. Twice that p99 occurs
/// without an overload too.
pub(super) const NORMAL_FACTOR: f64 = 3.0;

/// The length of a slice of the timeline.
pub(super) const SLICE_MS: u64 = 100;

/// The positions of the percentiles in [`Sample::ping_percentiles_ms`]. Position `p` is the
/// quantile `1 - 10^(-p/1000)`, so that each 1000 is another nine.
pub(super) fn positions() -> impl Iterator<Item = i32> {
    (0..=LAST_POSITION).step_by(50)
}

/// The position of 99.9 %.
pub(super) const LAST_POSITION: i32 = 3000;

/// The figures of one round of a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// The median latency of `/ping`.
    pub ping_p50_ms: f64,
    /// The p99 of the latency of `/ping`.
    pub ping_p99_ms: f64,
    /// Pings that did not succeed. They count with their age at the end of the run.
    pub ping_unanswered: u64,
    /// Jobs that were due.
    pub jobs_offered: u64,
    /// Jobs that succeeded.
    pub jobs_ok: u64,
    /// Jobs with any other response.
    pub jobs_refused: u64,
    /// Jobs without a response because the connection failed.
    pub jobs_failed: u64,
    /// Jobs without a response when the run ended.
    pub jobs_open: u64,
    /// Jobs that succeeded within [`JOB_TIMEOUT`], in percent of all jobs.
    pub within_timeout_pct: f64,
    /// Jobs that succeeded within [`JOB_TIMEOUT`], in percent of the capacity.
    pub within_timeout_of_capacity_pct: Option<f64>,
    /// The p99 of the latency of jobs that succeeded.
    pub jobs_ok_p99_ms: Option<f64>,
    /// The time from the end of the overload until latencies were normal, if they became normal.
    pub recovery_ms: Option<f64>,
    /// `true` if there were enough jobs to judge the recovery.
    pub recovery_known: bool,
    /// The time from the end of the overload until the last job without a success was due: zero if
    /// all later jobs succeeded.
    #[serde(default)]
    pub failing_ms: Option<f64>,
    /// Jobs that were due during the overload and succeeded within [`JOB_TIMEOUT`].
    #[serde(default)]
    pub overload_in_time: Option<u64>,
    /// Jobs whose success came during the overload, whenever they were due.
    #[serde(default)]
    pub overload_ended: Option<u64>,
    /// `overload_in_time`, in percent of what the machine could do at that time: of the
    /// `overload_ended` of a row whose queue is always full, in the same round.
    #[serde(default)]
    pub goodput_pct: Option<f64>,
    /// The p99 of the generator's own lateness.
    pub generator_late_p99_ms: f64,
    /// The periods of the whole run in which the server had to wait because of its quota, if it had
    /// one.
    #[serde(default)]
    pub throttled_periods: Option<u64>,
    /// The latency of `/ping` at many percentiles up to 99.9 %.
    pub ping_percentiles_ms: Vec<f64>,
    /// The whole run of a recovery, in slices of 100 ms.
    pub timeline: Vec<Slice>,
}

/// The requests that were due in one slice of the timeline. Open requests count with their age.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// The latency of the slowest ping.
    pub ping_max_ms: Option<f64>,
    /// The latency of the slowest job that was not rejected.
    pub job_max_ms: Option<f64>,
    /// The number of jobs that were refused or failed.
    pub jobs_refused: u64,
}

impl Sample {
    pub(super) fn of(observation: &Observation, setting: &Setting) -> Self {
        let Observation { pings, jobs, lateness } = observation;
        let count = |outcomes: &[Outcome], end: End| outcomes.iter().filter(|it| it.end == end).count() as u64;
        let successes = || jobs.iter().filter(|job| job.end == End::Success);
        let within = successes().filter(|job| job.latency <= JOB_TIMEOUT).count() as f64;
        let latencies = microseconds(pings.iter().map(|ping| ping.latency));
        let ping_ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        let ok = microseconds(successes().map(|job| job.latency));
        let overload = setting.overload.map(|Overload { after_ms, length_ms }| {
            let begin = Duration::from_millis(setting.phases.warm_up_ms + after_ms);
            (begin, begin + Duration::from_millis(length_ms))
        });
        let during_overload = |is_counted: &dyn Fn(&Outcome, Range<Duration>) -> bool| {
            let (begin, end) = overload?;
            Some(successes().filter(|job| is_counted(job, begin..end)).count() as u64)
        };
        let recovery = overload.map_or(Recovery::Unknown, |(begin, end)| time_until_normal(jobs, begin, end));
        // Sleeping jobs use no share of the cores.
        let capacity = setting.conditions.capacity_per_second.filter(|_| setting.scene == Scene::Cpu);
        Self {
            ping_p50_ms: ping_ms(0.5),
            ping_p99_ms: ping_ms(0.99),
            ping_unanswered: pings.len() as u64 - count(pings, End::Success),
            jobs_offered: jobs.len() as u64,
            jobs_ok: count(jobs, End::Success),
            jobs_refused: count(jobs, End::Refused),
            jobs_failed: count(jobs, End::Failed),
            jobs_open: count(jobs, End::Open),
            within_timeout_pct: 100.0 * within / jobs.len().max(1) as f64,
            within_timeout_of_capacity_pct: capacity
                .map(|capacity| 100.0 * within / (capacity * setting.phases.measure_ms as f64 / 1e3)),
            jobs_ok_p99_ms: (!ok.is_empty()).then(|| ok.value_at_quantile(0.99) as f64 / 1e3),
            recovery_ms: if let Recovery::After(time) = recovery { Some(milliseconds(time)) } else { None },
            recovery_known: recovery != Recovery::Unknown,
            failing_ms: overload.map(|(_, end)| {
                let last = jobs.iter().rfind(|job| job.end != End::Success && job.due >= end);
                last.map_or(0.0, |job| milliseconds(job.due - end))
            }),
            overload_in_time: during_overload(&|job, overload| {
                overload.contains(&job.due) && overload.contains(&(job.due + job.latency)) && job.latency <= JOB_TIMEOUT
            }),
            overload_ended: during_overload(&|job, overload| overload.contains(&(job.due + job.latency))),
            goodput_pct: None,
            generator_late_p99_ms: lateness.value_at_quantile(0.99) as f64 / 1e3,
            ping_percentiles_ms: positions()
                .map(|position| ping_ms(1.0 - 10_f64.powf(-f64::from(position) / 1e3)))
                .collect(),
            throttled_periods: None,
            timeline: if setting.overload.is_some() { timeline(pings, jobs, setting) } else { Vec::new() },
        }
    }

    /// Returns infinity if latencies did not become normal, and `None` if that is not known.
    pub(super) fn recovery_or_never_ms(&self) -> Option<f64> {
        self.recovery_known.then(|| self.recovery_ms.unwrap_or(f64::INFINITY))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovery {
    /// Latencies were normal this long after the end of the overload.
    After(Duration),
    /// Latencies did not become normal during the run.
    Never,
    /// There were not enough jobs, or not enough successes before the overload.
    Unknown,
}

/// Returns the time from the end of the overload until jobs are as fast as before it.
///
/// That is the due time of the first job from which on every window of [`WINDOW`] jobs, in the
/// order of their due times, has a p99 of at most [`NORMAL_FACTOR`] times the p99 of all jobs due
/// before the overload. A job that did not succeed counts as infinitely late.
fn time_until_normal(jobs: &[Outcome], begin: Duration, end: Duration) -> Recovery {
    let latency = |job: &Outcome| if job.end == End::Success { job.latency } else { Duration::MAX };
    let before: Vec<Duration> = jobs.iter().filter(|job| job.due < begin).map(latency).collect();
    let Some(usual) = p99(&before).filter(|p99| *p99 < Duration::MAX) else { return Recovery::Unknown };
    let limit = usual.mul_f64(NORMAL_FACTOR);

    let after: Vec<&Outcome> = jobs.iter().filter(|job| job.due >= end).collect();
    let latencies: Vec<Duration> = after.iter().map(|job| latency(job)).collect();
    let is_normal = |window: &&[Duration]| p99(window).is_some_and(|p99| p99 <= limit);
    let normal_at_the_end = latencies.windows(WINDOW).rev().take_while(is_normal).count();
    match (after.len() + 1).saturating_sub(WINDOW) {
        0 => Recovery::Unknown,
        _ if normal_at_the_end == 0 => Recovery::Never,
        windows => Recovery::After(after[windows - normal_at_the_end].due - end),
    }
}

/// Returns the p99 by the nearest rank, or `None` for fewer than [`WINDOW`] latencies.
fn p99(latencies: &[Duration]) -> Option<Duration> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * 99).div_ceil(100);
    (sorted.len() >= WINDOW).then(|| sorted[rank - 1])
}

/// Divides the measured time into slices.
fn timeline(pings: &[Outcome], jobs: &[Outcome], setting: &Setting) -> Vec<Slice> {
    let count = usize::try_from(setting.phases.measure_ms / SLICE_MS).unwrap_or(0);
    let mut slices = vec![Slice::default(); count];
    let index = |outcome: &Outcome| {
        let since = outcome.due.checked_sub(Duration::from_millis(setting.phases.warm_up_ms))?;
        usize::try_from(since.as_millis() / u128::from(SLICE_MS)).ok().filter(|index| *index < count)
    };
    let raise = |highest: &mut Option<f64>, latency| {
        *highest = Some(highest.unwrap_or(0.0).max(milliseconds(latency)));
    };
    for ping in pings {
        if let Some(index) = index(ping) {
            raise(&mut slices[index].ping_max_ms, ping.latency);
        }
    }
    for job in jobs {
        match (index(job), job.end) {
            (Some(index), End::Open | End::Success) => raise(&mut slices[index].job_max_ms, job.latency),
            (Some(index), End::Refused | End::Failed) => slices[index].jobs_refused += 1,
            (None, _) => {}
        }
    }
    slices
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
