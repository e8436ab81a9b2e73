//! The runs of the variants, and what they come to.

use serde::{Deserialize, Serialize};

use crate::{
    plan::{Measure, Store, TOLERATED_OTHERS},
    spread::Spread,
    variants::Variant,
};

/// One run.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    /// Of a drain there is none.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) refused: u64,
    /// Tasks whose end was written, in the time until all were.
    pub(crate) settled_per_second: Option<f64>,
    pub(crate) evict_us: Option<f64>,
}

/// One variant with so many clients, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    pub(crate) measure: Measure,
    pub(crate) clients: usize,
    pub(crate) samples: Vec<Sample>,
    /// What other processes had of the cores in each round, in percent, if the system tells.
    pub(crate) others: Vec<f64>,
}

impl Row {
    /// None without rounds, and of what it has not.
    pub(crate) fn over_samples(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.samples.iter().filter_map(figure))
    }

    pub(crate) fn per_second(&self) -> Option<Spread> {
        self.over_samples(|it| Some(it.per_second))
    }

    /// Its rate divided by that of what it is compared with, within each round: only there were both under the same conditions.
    pub(crate) fn ratio(&self, rows: &[Row]) -> Option<Spread> {
        let is_base = |row: &&Row| {
            row.variant.name == self.variant.base && (row.measure, row.clients) == (self.measure, self.clients)
        };
        let base = rows.iter().find(is_base)?;
        Spread::of(self.samples.iter().zip(&base.samples).map(|(ours, base)| ours.per_second / base.per_second))
    }

    pub(crate) fn refused(&self) -> u64 {
        self.samples.iter().map(|it| it.refused).sum()
    }

    /// The worst of the rounds.
    pub(crate) fn others(&self) -> Option<f64> {
        self.others.iter().copied().reduce(f64::max)
    }

    /// A database server is another process, and what it had is in `others`: of its rows nothing is known.
    pub(crate) fn is_disturbed(&self) -> Option<bool> {
        let known = self.others().filter(|_| self.variant.store != Store::Postgres)?;
        Some(known > TOLERATED_OTHERS)
    }
}
