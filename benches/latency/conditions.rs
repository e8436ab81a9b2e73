//! What all figures of a session depend on.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::latency::{arrivals::Arrivals, plan::Plan, platform::Priority, server};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Conditions {
    /// Whether the jobs arrive at random instead of evenly.
    pub(crate) poisson: bool,
    /// Jobs a second that are 100 %, before the first round and after the last one. None for a server of the user's.
    pub(crate) capacity_per_second: Option<f64>,
    pub(crate) capacity_after_per_second: Option<f64>,
    pub(crate) cores: usize,
    pub(crate) system: String,
    /// What the generator runs at.
    pub(crate) priority: String,
}

/// How far the capacity at the end may be from that at the start, as a share, before the loads are in doubt.
const TOLERATED_DRIFT: f64 = 0.1;

impl Conditions {
    pub(crate) fn of(plan: &Plan, priority: Priority) -> Self {
        Self {
            poisson: plan.jobs == Arrivals::Poisson,
            capacity_per_second: None,
            capacity_after_per_second: None,
            cores: server::cores(),
            system: system(),
            priority: priority.to_string(),
        }
    }

    pub(crate) fn arrivals(&self) -> &'static str {
        if self.poisson { "Poisson arrivals" } else { "evenly spaced" }
    }

    /// By how much the capacity moved meanwhile, in percent, if that puts the loads in doubt.
    pub(crate) fn drift_percent(&self) -> Option<f64> {
        let drift = (self.capacity_after_per_second? / self.capacity_per_second? - 1.0).abs();
        (drift > TOLERATED_DRIFT).then_some(drift * 100.0)
    }
}

/// Such as `Linux 6.18.0, x86_64`.
fn system() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = if release.is_empty() { std::env::consts::OS } else { "Linux" };
    format!("{} {}, {}", name, release.trim(), std::env::consts::ARCH).replace(" ,", ",")
}
