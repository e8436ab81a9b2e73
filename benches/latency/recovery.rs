//! When a server is itself again after an overload.

use std::time::Duration;

use crate::latency::tally::{End, Fate};

/// The jobs of a window: the fewest of whose latencies a p99 is not simply the longest.
pub(crate) const WINDOW: usize = 100;

/// A p99 below this many times that before the overload is normal: twice happens without any overload.
pub(crate) const NORMAL: f64 = 3.0;

/// When the overload was, as due times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) begin: Duration,
    pub(crate) end: Duration,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// So long after the end of the overload.
    After(Duration),
    /// Not while it was watched.
    Never,
    /// Nobody can say: too few jobs were answered before the overload, or were due after it.
    Unknown,
}

/// How long after the end of the overload jobs are answered as before it.
///
/// That is the due time of the first job from which on every window of [`WINDOW`] jobs, in the order in which they were due,
/// has a p99 of at most [`NORMAL`] times the p99 of all jobs due before the overload. A job without a success, refused or
/// failed or still open, is infinitely late.
pub(crate) fn time_until_normal(jobs: &[Fate], overload: Times) -> Recovery {
    let before: Vec<Duration> = jobs.iter().filter(|job| job.due < overload.begin).map(lateness).collect();
    let Some(usual) = p99(&before).filter(|p99| *p99 < Duration::MAX) else { return Recovery::Unknown };
    let limit = usual.mul_f64(NORMAL);

    let after: Vec<&Fate> = jobs.iter().filter(|job| job.due >= overload.end).collect();
    let latenesses: Vec<Duration> = after.iter().map(|job| lateness(job)).collect();
    let is_normal = |window: &[Duration]| p99(window).is_some_and(|p99| p99 <= limit);
    let normal_to_the_end = latenesses.windows(WINDOW).rev().take_while(|window| is_normal(window)).count();
    match after.len().checked_sub(WINDOW - 1) {
        None | Some(0) => Recovery::Unknown,
        Some(_) if normal_to_the_end == 0 => Recovery::Never,
        Some(windows) => Recovery::After(after[windows - normal_to_the_end].due - overload.end),
    }
}

fn lateness(job: &Fate) -> Duration {
    if job.end == End::Answered { job.latency } else { Duration::MAX }
}

/// By the nearest rank: one in a hundred may be longer. None of fewer than a hundred.
fn p99(latencies: &[Duration]) -> Option<Duration> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * 99).div_ceil(100);
    (sorted.len() >= WINDOW).then(|| sorted[rank - 1])
}
