//! The runs of a variant at a load, and what they come to.

use hdrhistogram::Histogram;

use crate::{
    plan::{TOLERATED_LATENESS, TOLERATED_OTHERS},
    tally::Tally,
    variants::Variant,
};

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

    /// Whether the generator was punctual enough to judge the server by this run.
    pub(crate) fn is_reliable(&self) -> bool {
        self.lateness_ms() <= TOLERATED_LATENESS.as_secs_f64() * 1e3
    }
}

/// One variant at one load, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    pub(crate) load: u32,
    pub(crate) runs: Vec<Run>,
}

impl Row {
    pub(crate) fn over_runs(&self, figure: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(figure))
    }

    /// The latency of `/ping`, in milliseconds.
    pub(crate) fn ping_at(&self, quantile: f64) -> Spread {
        self.over_runs(|run| run.ping.latency_ms(quantile))
    }

    pub(crate) fn is_reliable(&self) -> bool {
        self.runs.iter().all(Run::is_reliable)
    }

    /// The worst of the rounds.
    pub(crate) fn others(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.others).reduce(f64::max)
    }

    pub(crate) fn is_undisturbed(&self) -> bool {
        self.others().is_none_or(|others| others <= TOLERATED_OTHERS)
    }
}

/// A median, and how far the rounds were from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// NaN of nothing.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Self { median, min: *min, max: *max }
    }
}
