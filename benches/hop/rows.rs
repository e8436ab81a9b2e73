//! The runs of the variants in a scene, and what they come to.

use serde::{Deserialize, Serialize};

use crate::{
    plan::{Mode, Scene, TOLERATED_OTHERS},
    spread::Spread,
    variants::Variant,
};

/// One variant in one scene, measured once.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) ops_per_s: f64,
    pub(crate) allocs_per_op: f64,
}

/// One variant in one scene, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    /// None without rounds.
    pub(crate) fn over_samples(&self, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.iter().map(figure))
    }

    /// Two rows' figures, put together within each round: only there were both under the same conditions.
    pub(crate) fn with(&self, other: &Row, figure: impl Fn(&Sample, &Sample) -> f64) -> Option<Spread> {
        Spread::of(self.samples.iter().zip(&other.samples).map(|(ours, other)| figure(ours, other)))
    }
}

/// All variants in one scene.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) scene: Scene,
    pub(crate) rows: Vec<Row>,
    /// What other processes had of the cores in each round, in percent, if the system tells.
    pub(crate) others: Vec<f64>,
}

impl Table {
    pub(crate) fn row(&self, variant: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.variant.name == variant)
    }

    /// What the scene is about, of one variant divided by that of another: the median latency, or the calls a second.
    /// None if either was not measured.
    pub(crate) fn ratio(&self, ours: &str, other: &str) -> Option<Spread> {
        let figure = |sample: &Sample| match self.scene.mode {
            Mode::Sequential => sample.p50_us,
            Mode::Throughput => sample.ops_per_s,
        };
        self.row(ours)?.with(self.row(other)?, |ours, other| figure(ours) / figure(other))
    }

    /// The worst of the rounds.
    pub(crate) fn others(&self) -> Option<f64> {
        self.others.iter().copied().reduce(f64::max)
    }

    pub(crate) fn is_undisturbed(&self) -> bool {
        self.others().is_none_or(|others| others <= TOLERATED_OTHERS)
    }
}
