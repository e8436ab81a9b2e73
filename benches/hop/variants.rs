//! The ways that are compared, as data.

use crate::{
    BoxError,
    child::Stage,
    hops::{self, Bare, CrossbeamOneshot, Inline, RayonOneshot, SecondRuntime, SpawnBlocking, TokioRayon, Unblock},
    rows::Sample,
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

/// The variants that any of the filters names, by the whole name or else by a part of it. All of them without a filter.
pub(crate) fn matching(filters: &[String]) -> Result<Vec<Variant>, BoxError> {
    if filters.is_empty() {
        return Ok(VARIANTS.to_vec());
    }
    let mut chosen = vec![false; VARIANTS.len()];
    for filter in filters {
        let exact = named(filter).is_some();
        let mut found = false;
        for (variant, chosen) in VARIANTS.iter().zip(&mut chosen) {
            if if exact { variant.name == filter } else { variant.name.contains(filter.as_str()) } {
                (*chosen, found) = (true, true);
            }
        }
        if !found {
            let names: Vec<_> = VARIANTS.iter().map(|variant| variant.name).collect();
            return Err(format!("no variant is named like `{filter}`; there are {}", names.join(", ")).into());
        }
    }
    Ok(VARIANTS.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(variant, _)| *variant).collect())
}
