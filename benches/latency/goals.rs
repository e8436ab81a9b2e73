//! The figures that are meant to be reached, as data. A row stays, whatever comes out.

use crate::latency::{plan::Scene, record::Record, spread::Spread};

/// One figure of one variant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) name: &'static str,
    figure: Figure,
    pub(crate) must: f64,
    pub(crate) aim: f64,
}

#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Jobs answered within the deadline at 200 %, in percent of the capacity. More is better.
    Answered(&'static str),
    /// The p99 of `/ping` at 130 % of the first as a multiple of the second's. Less is better.
    Ping(&'static str, &'static str),
    /// The time until the p99 of the jobs is normal after an overload, in milliseconds. Less is better.
    Recovery(&'static str),
    /// The p99 of the jobs that were answered at 200 %, in milliseconds. Less is better.
    Successes(&'static str),
}

pub(crate) const GOALS: &[Goal] = &[
    Goal {
        name: "/ping p99 at 130 %, offload/threads v inline",
        figure: Figure::Ping("offload/threads", "inline"),
        must: 0.01,
        aim: 0.001,
    },
    Goal {
        name: "/ping p99 at 130 %, offload/threads v spawn_blocking",
        figure: Figure::Ping("offload/threads", "spawn_blocking"),
        must: 0.01,
        aim: 0.001,
    },
    Goal {
        name: "/ping p99 at 130 %, offload/nice v spawn_blocking/capped",
        figure: Figure::Ping("offload/nice", "spawn_blocking/capped"),
        must: 0.6,
        aim: 0.3,
    },
    Goal {
        name: "200 %: jobs within 200 ms, % of capacity, offload/bounded",
        figure: Figure::Answered("offload/bounded"),
        must: 90.0,
        aim: 97.0,
    },
    Goal {
        name: "200 %: jobs within 200 ms, % of capacity, offload/codel",
        figure: Figure::Answered("offload/codel"),
        must: 90.0,
        aim: 97.0,
    },
    Goal {
        name: "200 %: p99 of the jobs answered, ms, offload/bounded",
        figure: Figure::Successes("offload/bounded"),
        must: 150.0,
        aim: 30.0,
    },
    Goal {
        name: "200 %: p99 of the jobs answered, ms, offload/codel",
        figure: Figure::Successes("offload/codel"),
        must: 150.0,
        aim: 30.0,
    },
    Goal {
        name: "after 300 %: ms until normal, offload/bounded",
        figure: Figure::Recovery("offload/bounded"),
        must: 1000.0,
        aim: 100.0,
    },
    Goal {
        name: "after 300 %: ms until normal, offload/codel",
        figure: Figure::Recovery("offload/codel"),
        must: 1000.0,
        aim: 100.0,
    },
];

impl Goal {
    /// None if a part of it was not measured. Infinity if there is nothing to measure: none answered, never normal.
    pub(crate) fn measured(&self, records: &[Record]) -> Option<Spread> {
        let find = |name: &str| {
            let (scene, load) = self.place();
            records
                .iter()
                .find(|it| it.scene == scene && it.variant == name && load.is_none_or(|_| it.load_pct == load))
        };
        match self.figure {
            Figure::Answered(variant) => find(variant)?.over_some(|run| run.within_deadline_of_capacity_pct),
            Figure::Ping(ours, other) => {
                // Within each round, for only there were both under the same conditions.
                let rounds = find(ours)?.runs.iter().zip(&find(other)?.runs);
                Spread::of(rounds.map(|(ours, other)| ours.ping_p99_ms / other.ping_p99_ms))
            }
            Figure::Recovery(variant) => find(variant)?.over_some(|run| run.recovery_or_never()),
            Figure::Successes(variant) => find(variant)?.over_runs(|run| run.work_ok_p99_ms.unwrap_or(f64::INFINITY)),
        }
    }

    /// Whether the generator was late, or others had too much of the cores, in a run that it is made of; or whether the loads
    /// were not what they say.
    pub(crate) fn is_doubtful(&self, records: &[Record]) -> bool {
        let (scene, load) = self.place();
        let (ours, other) = match self.figure {
            Figure::Ping(ours, other) => (ours, other),
            Figure::Answered(ours) | Figure::Recovery(ours) | Figure::Successes(ours) => (ours, ours),
        };
        let concerns = |it: &&Record| {
            it.scene == scene && load.is_none_or(|_| it.load_pct == load) && (it.variant == ours || it.variant == other)
        };
        let is_doubtful = |it: &Record| !it.reliable || it.conditions.drift_percent().is_some();
        records.iter().filter(concerns).any(is_doubtful)
    }

    /// Whether it is `<=` or `>=` that is wanted.
    pub(crate) fn sign(&self) -> &'static str {
        if self.more_is_better() { ">=" } else { "<=" }
    }

    pub(crate) fn verdict(&self, measured: f64) -> &'static str {
        let met = |goal: f64| if self.more_is_better() { measured >= goal } else { measured <= goal };
        match (met(self.must), met(self.aim)) {
            (_, true) => "aim met",
            (true, false) => "must met",
            (false, false) => "NOT MET",
        }
    }

    fn more_is_better(&self) -> bool {
        matches!(self.figure, Figure::Answered(_))
    }

    fn place(&self) -> (Scene, Option<u32>) {
        match self.figure {
            Figure::Answered(_) | Figure::Successes(_) => (Scene::Cpu, Some(200)),
            Figure::Ping(..) => (Scene::Cpu, Some(130)),
            Figure::Recovery(_) => (Scene::Recovery, None),
        }
    }
}
