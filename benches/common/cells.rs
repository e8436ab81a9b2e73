//! A table as text.

/// Cells under columns; the first column is a name.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) heading: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// In columns; the first and the last one begin at the left.
    pub(crate) fn text(&self) -> String {
        let width = |place: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(place)).map(|cell| cell.chars().count());
            cells.chain([self.columns[place].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).enumerate().map(|(place, (cell, width))| {
                if place == 0 || place + 1 == self.columns.len() {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n\n{}{rows}", self.heading, line(&self.columns))
    }
}
