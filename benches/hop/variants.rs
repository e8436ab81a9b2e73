//! The ways that are compared, as data.

use crate::{
    BoxError, filter,
    hops::{self, Bare, CrossbeamOneshot, Inline, RayonOneshot, SecondRuntime, SpawnBlocking, TokioRayon, Unblock},
    rows::Sample,
    stage::Stage,
};

/// One way to run a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// Whether tokio's blocking threads are as few as those of the pools, instead of tokio's default of 512.
    pub(crate) capped: bool,
    /// Called inside the runtime.
    pub(crate) measure: fn(&Stage) -> Result<Sample, BoxError>,
}

const VARIANTS: &[Variant] = &[
    Variant { name: "inline", capped: false, measure: |stage| stage.measure(Inline) },
    Variant { name: "spawn_blocking", capped: false, measure: |stage| stage.measure(SpawnBlocking) },
    Variant { name: "spawn_blocking/capped", capped: true, measure: |stage| stage.measure(SpawnBlocking) },
    Variant { name: "tokio-rayon", capped: false, measure: |stage| stage.measure(TokioRayon::new()?) },
    Variant { name: "rayon+oneshot", capped: false, measure: |stage| stage.measure(RayonOneshot::new()?) },
    Variant { name: "crossbeam+oneshot", capped: false, measure: |stage| stage.measure(CrossbeamOneshot::new()?) },
    Variant { name: "unblock", capped: false, measure: |stage| stage.measure(Unblock) },
    Variant { name: "second-runtime", capped: false, measure: |stage| stage.measure(SecondRuntime::new()?) },
    Variant { name: "tower-resilience", capped: false, measure: |stage| stage.measure(hops::tower_resilience()) },
    Variant { name: "threads", capped: false, measure: |stage| stage.measure(Bare::threads()?) },
    Variant { name: "rayon", capped: false, measure: |stage| stage.measure(Bare::rayon()?) },
    Variant { name: "offload", capped: false, measure: |stage| stage.measure(hops::offload()?) },
];

pub(crate) fn named(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == name)
}

/// See there.
pub(crate) fn matching(filters: &[String]) -> Result<Vec<Variant>, BoxError> {
    filter::matching(VARIANTS, |variant| variant.name, filters)
}
