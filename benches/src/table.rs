use std::fmt;

/// The heading of a column, and a function from a row to its cell.
pub type Cell<'a, R> = (&'a str, &'a dyn Fn(&R) -> String);

/// A table of text.
#[derive(Debug, Clone)]
pub struct Table {
    /// The line above the table.
    pub heading: String,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The cells of each row.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Fills a table from `rows`, with one cell for each of `columns`.
    pub fn new<'a, R: 'a>(
        heading: impl Into<String>,
        rows: impl IntoIterator<Item = &'a R>,
        columns: &[Cell<'_, R>],
    ) -> Self {
        Self {
            heading: heading.into(),
            columns: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
            rows: rows.into_iter().map(|row| columns.iter().map(|(_, cell)| cell(row)).collect()).collect(),
        }
    }
}

/// Aligns the first and the last column to the left and the other columns to the right.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.columns).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        writeln!(f, "{}\n", self.heading)?;
        for line in lines() {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                let is_left = column == 0 || column + 1 == widths.len();
                if is_left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}
