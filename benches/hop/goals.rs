//! The figures that the pool is meant to reach, as data. A row stays, whatever comes out.

use crate::{
    plan::{Flavor, Pin, Scene},
    rows::Table,
    spread::Spread,
};

/// One figure, in one scene.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) name: &'static str,
    scene: Scene,
    figure: Figure,
    pub(crate) must: f64,
    pub(crate) aim: f64,
}

#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Allocations a call of the first, less those of the second. Less is better.
    AddedAllocations(&'static str, &'static str),
    /// The median latency of the first as a multiple of the second's. Less is better.
    Latency(&'static str, &'static str),
    /// Calls a second, likewise. More is better.
    Rate(&'static str, &'static str),
}

const CROSS: Scene = Scene::sequential(Flavor::CurrentThread, Pin::Cross);
const ONE: Scene = Scene::sequential(Flavor::CurrentThread, Pin::One);
const CURRENT: Scene = Scene::throughput(Flavor::CurrentThread, 256);
const MULTI: Scene = Scene::throughput(Flavor::MultiThread, 256);

pub(crate) const GOALS: &[Goal] = &[
    Goal {
        name: "hop p50 v spawn_blocking, across cores",
        scene: CROSS,
        figure: Figure::Latency("threads", "spawn_blocking"),
        must: 0.75,
        aim: 0.55,
    },
    Goal {
        name: "hop p50 v spawn_blocking, on one core",
        scene: ONE,
        figure: Figure::Latency("threads", "spawn_blocking"),
        must: 0.95,
        aim: 0.75,
    },
    Goal {
        name: "hop p50 v crossbeam+oneshot, across cores",
        scene: CROSS,
        figure: Figure::Latency("threads", "crossbeam+oneshot"),
        must: 1.2,
        aim: 1.0,
    },
    Goal {
        name: "hop p50 v crossbeam+oneshot, on one core",
        scene: ONE,
        figure: Figure::Latency("threads", "crossbeam+oneshot"),
        must: 1.2,
        aim: 1.0,
    },
    Goal {
        name: "the whole layer v a bare hop, across cores",
        scene: CROSS,
        figure: Figure::Latency("offload", "threads"),
        must: 1.25,
        aim: 1.1,
    },
    Goal {
        name: "the whole layer v a bare hop, on one core",
        scene: ONE,
        figure: Figure::Latency("offload", "threads"),
        must: 1.25,
        aim: 1.1,
    },
    Goal {
        name: "256 calls v spawn_blocking, current_thread",
        scene: CURRENT,
        figure: Figure::Rate("threads", "spawn_blocking"),
        must: 5.0,
        aim: 14.0,
    },
    Goal {
        name: "256 calls v spawn_blocking, multi_thread(2)",
        scene: MULTI,
        figure: Figure::Rate("threads", "spawn_blocking"),
        must: 8.0,
        aim: 15.0,
    },
    Goal {
        name: "256 calls v spawn_blocking/capped, current_thread",
        scene: CURRENT,
        figure: Figure::Rate("threads", "spawn_blocking/capped"),
        must: 1.1,
        aim: 2.5,
    },
    Goal {
        name: "256 calls v spawn_blocking/capped, multi_thread(2)",
        scene: MULTI,
        figure: Figure::Rate("threads", "spawn_blocking/capped"),
        must: 2.0,
        aim: 3.0,
    },
    Goal {
        name: "256 calls v rayon+oneshot, current_thread",
        scene: CURRENT,
        figure: Figure::Rate("threads", "rayon+oneshot"),
        must: 1.1,
        aim: 2.5,
    },
    Goal {
        name: "256 calls v rayon+oneshot, multi_thread(2)",
        scene: MULTI,
        figure: Figure::Rate("threads", "rayon+oneshot"),
        must: 1.1,
        aim: 1.3,
    },
    Goal {
        name: "allocations the layer adds to a call",
        scene: CURRENT,
        figure: Figure::AddedAllocations("offload", "inline"),
        must: 2.0,
        aim: 1.0,
    },
];

impl Goal {
    /// None if a part of it was not measured.
    pub(crate) fn measured(&self, tables: &[Table]) -> Option<Spread> {
        let table = tables.iter().find(|table| table.scene == self.scene)?;
        match self.figure {
            Figure::AddedAllocations(ours, other) => {
                let (ours, other) = (table.row(ours)?, table.row(other)?);
                ours.with(other, |ours, other| ours.allocs_per_op - other.allocs_per_op)
            }
            Figure::Latency(ours, other) | Figure::Rate(ours, other) => table.ratio(ours, other),
        }
    }

    pub(crate) fn is_disturbed(&self, tables: &[Table]) -> bool {
        tables.iter().any(|table| table.scene == self.scene && !table.is_undisturbed())
    }

    /// Whether it is `<=` or `>=` that is wanted.
    pub(crate) fn sign(&self) -> &'static str {
        if self.more_is_better() { ">=" } else { "<=" }
    }

    pub(crate) fn verdict(&self, measured: f64) -> &'static str {
        // A stray allocation over thousands of calls (a queue that grows) is none a call.
        let slack = if matches!(self.figure, Figure::AddedAllocations(..)) { 0.01 } else { 0.0 };
        let met = |goal: f64| if self.more_is_better() { measured >= goal } else { measured <= goal + slack };
        match (met(self.must), met(self.aim)) {
            (_, true) => "aim met",
            (true, false) => "must met",
            (false, false) => "NOT MET",
        }
    }

    fn more_is_better(&self) -> bool {
        matches!(self.figure, Figure::Rate(..))
    }
}
