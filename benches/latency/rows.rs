//! The runs of a variant at a load.

use hdrhistogram::Histogram;

use crate::latency::{plan::Part, tally::Tally, variants::Variant};

/// One variant at one load, measured once.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) ping: Tally,
    pub(crate) work: Tally,
    pub(crate) lateness: Histogram<u64>,
    /// What other processes had of the cores, in percent, if the system tells.
    pub(crate) others: Option<f64>,
}

impl Run {
    pub(crate) fn lateness_ms(&self) -> f64 {
        self.lateness.value_at_quantile(0.99) as f64 / 1e3
    }
}

/// One variant at one load, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    /// In percent of the capacity, if that is how the jobs are counted.
    pub(crate) load: Option<u32>,
    pub(crate) part: Part,
    pub(crate) runs: Vec<Run>,
}
