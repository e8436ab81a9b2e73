//! Several rounds of one figure.

/// A median, and how far the rounds were from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// None of nothing. Infinity is a value: "never".
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median, min, max })
    }
}

pub(crate) fn with_range(spread: Spread) -> String {
    if spread.min == spread.max {
        number(spread.median)
    } else {
        format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
    }
}

/// With three digits or so, as more would claim what was not measured.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value.is_infinite() => "never".to_owned(),
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
