//! The rounds of the variants on a protocol, and what they come to.

use serde::{Deserialize, Serialize};

use crate::{
    plan::{Protocol, TOLERATED_OTHERS},
    spread::Spread,
    variants::{PLAIN, Variant},
};

/// What a response costs one variant, on one protocol, in one round: server and client together.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) cpu_ns: f64,
    pub(crate) wall_ns: f64,
    pub(crate) allocations: f64,
}

/// One variant on one protocol, round by round.
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
}

/// All variants on one protocol.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) protocol: Protocol,
    pub(crate) rows: Vec<Row>,
    /// What other processes had of the cores in each round, in percent, if the system tells.
    pub(crate) others: Vec<f64>,
}

impl Table {
    pub(crate) fn new(protocol: Protocol, variants: &[Variant]) -> Self {
        let rows = variants.iter().map(|variant| Row { variant: *variant, samples: Vec::new() });
        Self { protocol, rows: rows.collect(), others: Vec::new() }
    }

    pub(crate) fn row(&self, variant: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.variant.name == variant)
    }

    /// A figure less that of the plain server, within each round: only there were both under the same conditions.
    pub(crate) fn extra(&self, row: &Row, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        let plain = self.row(PLAIN)?;
        Spread::of(row.samples.iter().zip(&plain.samples).map(|(ours, plain)| figure(ours) - figure(plain)))
    }

    /// The worst of the rounds.
    pub(crate) fn others(&self) -> Option<f64> {
        self.others.iter().copied().reduce(f64::max)
    }

    pub(crate) fn is_undisturbed(&self) -> bool {
        self.others().is_none_or(|others| others <= TOLERATED_OTHERS)
    }
}

/// In microseconds.
pub(crate) fn cpu_us(sample: &Sample) -> f64 {
    sample.cpu_ns / 1e3
}
