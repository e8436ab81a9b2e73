use std::fmt;

/// The median of one figure over several rounds, with the lowest and the highest round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The lowest round.
    pub min: f64,
    /// The highest round.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of `values`, or `None` if there are no values. Infinity is a value and
    /// means "never".
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median, min, max })
    }

    /// Formats all three values with enough digits for goals of a few thousandths.
    pub fn precise(self) -> String {
        let digits = |value: f64| match value.abs() {
            0.0 => "0".to_owned(),
            size if size < 0.01 => format!("{value:.5}"),
            size if size < 9.9995 => format!("{value:.3}"),
            _ => number(value),
        };
        format!("{} ({}-{})", digits(self.median), digits(self.min), digits(self.max))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&number(self.median))?;
        if self.min < self.max { write!(f, " ({}-{})", number(self.min), number(self.max)) } else { Ok(()) }
    }
}

/// Formats a figure with about three digits, because the measurements are no more exact than that.
pub fn number(value: f64) -> String {
    match value {
        value if value.is_infinite() => "never".to_owned(),
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Formats a spread, or a dash if there is none.
pub fn range(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| spread.to_string())
}
