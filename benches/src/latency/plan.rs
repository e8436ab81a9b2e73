//! The rows of a full and of a quick run.

use crate::{
    Row,
    latency::{BUSY_PCT, Conditions, Overload, Phases, Scene, Setting, server::VARIANTS},
    platform,
};

/// How long and how often the rows are measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The length of each measurement of the capacity.
    pub(super) capacity_ms: u64,
    /// The number of runs of the session that may be repeated because the generator was late.
    pub(super) repeats: usize,
}

impl Plan {
    /// Returns the plan of a run that takes a quarter of an hour, or of a quick one.
    pub fn new(is_quick: bool) -> Self {
        if is_quick { Self { capacity_ms: 1000, repeats: 3 } } else { Self { capacity_ms: 5000, repeats: 8 } }
    }
}

/// Returns the rows of a run for these scenes, or for all scenes if `scenes` is empty.
pub fn rows(is_quick: bool, scenes: &[Scene]) -> Vec<super::Row> {
    // Variants with rayon, tokio or a nice value have the same queue as `offload/threads`, and
    // therefore recover like it.
    let recovering = |name: &str| {
        !name.ends_with("/rayon") && !name.ends_with("/tokio") && !name.ends_with("/nice") && is_computing(name)
    };
    let sleeping = |name: &str| {
        ["inline", "spawn_blocking", "spawn_blocking/capped", "offload/threads", "offload/blocking"].contains(&name)
    };
    let mut rows = Vec::new();
    let mut add = |setting: Setting, takes_part: &dyn Fn(&str) -> bool| {
        let variants = VARIANTS.iter().filter(|variant| takes_part(variant.name));
        rows.extend(variants.map(|variant| Row::new(variant.name, setting.clone())));
    };
    if is_quick {
        let phases = |measure_ms| Phases { warm_up_ms: 300, measure_ms, grace_ms: 250 };
        let is_quick = |name: &str| !["tower-resilience", "offload/rayon", "offload/tokio"].contains(&name);
        for load in [78, 130, 200] {
            add(setting(Scene::Cpu, Some(load), 1, phases(1200)), &|name| is_computing(name) && is_quick(name));
        }
        add(setting(Scene::Sleeping, None, 1, phases(900)), &|it| sleeping(it) && it != "spawn_blocking/capped");
        let overload = Some(Overload { after_ms: 1000, length_ms: 2500 });
        let recovery = Setting { overload, ..setting(Scene::Recovery, Some(BUSY_PCT), 1, phases(5000)) };
        let phases = Phases { warm_up_ms: 300, measure_ms: 1200, grace_ms: 250 };
        add(setting(Scene::Quota, Some(78), 1, phases), &is_sized);
        let is_recovering = |name: &str| recovering(name) && is_quick(name);
        add(recovery, &|name| is_recovering(name) && name != "inline" && name != "spawn_blocking/capped");
    } else {
        // At a low load little happens, so one round is enough.
        for load in [25, 50] {
            let phases = Phases { warm_up_ms: 500, measure_ms: 2500, grace_ms: 300 };
            add(setting(Scene::Cpu, Some(load), 1, phases), &is_computing);
        }
        for load in [78, 130, 200] {
            let phases = Phases { warm_up_ms: 1000, measure_ms: 3500, grace_ms: 500 };
            add(setting(Scene::Cpu, Some(load), 3, phases), &is_computing);
        }
        let phases = Phases { warm_up_ms: 1000, measure_ms: 3000, grace_ms: 500 };
        add(setting(Scene::Sleeping, None, 2, phases), &sleeping);
        for load in [78, 130] {
            let phases = Phases { warm_up_ms: 1000, measure_ms: 4000, grace_ms: 500 };
            add(setting(Scene::Quota, Some(load), 3, phases), &is_sized);
        }
        let overload = Some(Overload { after_ms: 2000, length_ms: 10_000 });
        let phases = Phases { warm_up_ms: 1000, measure_ms: 16_000, grace_ms: 300 };
        add(Setting { overload, ..setting(Scene::Recovery, Some(BUSY_PCT), 2, phases) }, &recovering);
    }
    rows.retain(|row| scenes.is_empty() || scenes.contains(&row.scene.scene));
    rows
}

/// Returns `true` for variants that take part in the scenes with computing jobs.
fn is_computing(name: &str) -> bool {
    name != "offload/blocking" && !is_sized(name)
}

/// Returns `true` for servers of which runtime and pool have given sizes.
fn is_sized(name: &str) -> bool {
    name.contains(" worker")
}

pub(super) fn setting(scene: Scene, load_pct: Option<u32>, round_count: usize, phases: Phases) -> Setting {
    let conditions = Conditions { cores: platform::parallelism(), system: platform::system(), ..Conditions::default() };
    Setting { scene, load_pct, round_count, phases, overload: None, jobs_per_second: 0.0, conditions }
}
