//! A run in slices of time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::latency::{
    spread::Spread,
    tally::{End, Fate, Tally},
};

/// One slice.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// The requests that were due in one slice. What was neither answered nor refused counts at its age, as everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slice {
    /// The slowest, if one counts.
    pub(crate) ping_max_ms: Option<f64>,
    pub(crate) job_max_ms: Option<f64>,
    /// Jobs that were refused, expired or failed.
    pub(crate) jobs_refused: u64,
}

/// From `begin` on, as many as there are whole slices in `length`.
pub(crate) fn slices(ping: &Tally, jobs: &Tally, begin: Duration, length: Duration) -> Vec<Slice> {
    let count = usize::try_from(length.as_millis() / SLICE.as_millis()).unwrap_or(0);
    let mut slices = vec![Slice { ping_max_ms: None, job_max_ms: None, jobs_refused: 0 }; count];
    let place = |fate: &Fate| {
        let since = fate.due.checked_sub(begin)?;
        usize::try_from(since.as_millis() / SLICE.as_millis()).ok()
    };
    for fate in &ping.fates {
        if let Some(slice) = place(fate).and_then(|place| slices.get_mut(place)) {
            raise(&mut slice.ping_max_ms, fate.latency);
        }
    }
    for fate in &jobs.fates {
        if let Some(slice) = place(fate).and_then(|place| slices.get_mut(place)) {
            match fate.end {
                End::Answered | End::Open => raise(&mut slice.job_max_ms, fate.latency),
                End::Expired | End::Failed | End::Refused => slice.jobs_refused += 1,
            }
        }
    }
    slices
}

/// Slice by slice, the medians of the rounds; of the refused the most.
pub(crate) fn median(rounds: &[Vec<Slice>]) -> Vec<Slice> {
    let count = rounds.iter().map(Vec::len).min().unwrap_or(0);
    let of = |place: usize, figure: fn(&Slice) -> Option<f64>| {
        Spread::of(rounds.iter().filter_map(|round| figure(&round[place]))).map(|spread| spread.median)
    };
    let refused = |place: usize| rounds.iter().map(|round| round[place].jobs_refused).max().unwrap_or(0);
    (0..count)
        .map(|place| Slice {
            ping_max_ms: of(place, |slice| slice.ping_max_ms),
            job_max_ms: of(place, |slice| slice.job_max_ms),
            jobs_refused: refused(place),
        })
        .collect()
}

fn raise(highest: &mut Option<f64>, latency: Duration) {
    let milliseconds = latency.as_secs_f64() * 1e3;
    *highest = Some(highest.map_or(milliseconds, |highest| highest.max(milliseconds)));
}
