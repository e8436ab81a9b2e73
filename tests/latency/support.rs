//! Requests and records that never happened.
// The benchmark's clock is the real one, of which these are only points.
#![allow(clippy::disallowed_types)]

use std::time::{Duration, Instant};

use crate::latency::{
    BoxError,
    client::Answer,
    conditions::Conditions,
    plan::{Part, Phases, Scene},
    record::Record,
    rows::Run,
    tally::{End, Fate, Tally, microseconds},
};

pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) fn fate(due_ms: u64, latency_ms: u64, end: End) -> Fate {
    Fate { due: ms(due_ms), latency: ms(latency_ms), end }
}

/// What a generator would tally of these; the run ends at `end_ms`.
pub(crate) fn tally(fates: &[Fate], end_ms: u64) -> Tally {
    let start = Instant::now();
    let mut tally = Tally::new(start);
    for fate in fates {
        let number = tally.offer(start + fate.due);
        let outcome: Result<Answer, BoxError> = match fate.end {
            End::Answered => Ok(Answer::Success),
            End::Expired => Ok(Answer::Expired),
            End::Failed => Err("reset".into()),
            End::Open => continue,
            End::Refused => Ok(Answer::Other(hyper::StatusCode::SERVICE_UNAVAILABLE)),
        };
        tally.answer(number, start + fate.due + fate.latency, &outcome);
    }
    tally.close(start + ms(end_ms));
    tally
}

pub(crate) fn conditions() -> Conditions {
    Conditions {
        poisson: false,
        capacity_per_second: Some(100.0),
        capacity_after_per_second: Some(100.0),
        cores: 2,
        system: "Linux, nowhere".to_owned(),
        priority: "no priority".to_owned(),
    }
}

pub(crate) fn part(scene: Scene, rounds: usize) -> Part {
    Part { scene, loads: Vec::new(), variants: &[], rounds, phases: Phases::of_ms(0, 1000, 0), overload: None }
}

/// A round of one second: pings that took so long, and jobs.
pub(crate) fn run(pings_ms: &[u64], jobs: &[Fate]) -> Run {
    let pings: Vec<Fate> = pings_ms.iter().map(|latency| fate(0, *latency, End::Answered)).collect();
    Run { ping: tally(&pings, 1000), work: tally(jobs, 1000), lateness: microseconds(), others: Some(0.0) }
}

pub(crate) fn record(variant: &str, load: u32, runs: &[Run]) -> Record {
    let part = part(Scene::Cpu, runs.len());
    Record::of(variant, Some(load), &part, &part.job_rates(Some(load), 100.0), runs, &conditions()).unwrap()
}
