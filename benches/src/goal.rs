use crate::{Row, Spread, Table, find};

/// A limit for a figure of one row. Goals that are not met stay in the list.
#[derive(Debug)]
pub struct Goal<S, T> {
    /// The name in the table.
    pub name: &'static str,
    /// Selects the scene of the row.
    pub scene: fn(&S) -> bool,
    /// The variant of the row.
    pub variant: &'static str,
    /// The row that the figure is compared with.
    pub compared: Compared,
    /// The figure of one round.
    pub figure: fn(&T) -> Option<f64>,
    /// The limits.
    pub limits: Limits,
}

/// The row that a figure is compared with, round by round.
#[derive(Debug, Clone, Copy)]
pub enum Compared {
    /// No other row: the figure itself is the result.
    Alone,
    /// The figure minus that of this variant.
    Difference(&'static str),
    /// The figure divided by that of this variant.
    Ratio(&'static str),
}

/// The limit that must be kept, and the one aimed at.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the description of the enum names both fields")]
pub enum Limits {
    /// Less is better.
    AtMost { must: f64, aim: f64 },
    /// More is better.
    AtLeast { must: f64, aim: f64 },
}

impl<S, T> Goal<S, T> {
    /// Compares `rows` with `goals`, by the median of the rounds.
    ///
    /// A goal gets the mark `~` if `is_doubtful` returns `true` for a row that it is computed from.
    pub fn table<'a>(
        goals: impl IntoIterator<Item = &'a Self>,
        rows: &[Row<S, T>],
        is_doubtful: impl Fn(&Row<S, T>) -> bool,
    ) -> Table
    where
        Self: 'a,
    {
        let cells = goals.into_iter().map(|goal| {
            let measured = goal.measured(rows);
            let (sign, must, aim) = match goal.limits {
                Limits::AtMost { must, aim } => ("<=", must, aim),
                Limits::AtLeast { must, aim } => (">=", must, aim),
            };
            let mark = if goal.rows(rows).flatten().any(&is_doubtful) { " ~" } else { "" };
            vec![
                goal.name.to_owned(),
                format!("{sign} {must}"),
                format!("{sign} {aim}"),
                measured.map_or_else(|| "-".to_owned(), Spread::precise),
                measured.map_or("not measured", |spread| goal.verdict(spread.median)).to_owned() + mark,
            ]
        });
        Table {
            heading: "Goals".to_owned(),
            rows: cells.collect(),
            columns: ["goal", "must", "aim", "measured (range)", "verdict"].map(str::to_owned).to_vec(),
        }
    }

    /// Returns `None` if one of the rows was not measured.
    fn measured(&self, rows: &[Row<S, T>]) -> Option<Spread> {
        let mut rows = self.rows(rows);
        let ours = rows.next()??;
        match self.compared {
            Compared::Alone => ours.spread(self.figure),
            Compared::Difference(_) => ours.compare(rows.next()??, self.figure, |ours, base| ours - base),
            Compared::Ratio(_) => ours.compare(rows.next()??, self.figure, |ours, base| ours / base),
        }
    }

    /// Returns the row of the goal, then the row that it is compared with, if any.
    fn rows<'a>(&self, rows: &'a [Row<S, T>]) -> impl Iterator<Item = Option<&'a Row<S, T>>> {
        let base = match self.compared {
            Compared::Alone => None,
            Compared::Difference(base) | Compared::Ratio(base) => Some(base),
        };
        let (ours, scene) = (self.variant, self.scene);
        std::iter::once(ours).chain(base).map(move |variant| find(rows, scene, variant))
    }

    fn verdict(&self, measured: f64) -> &'static str {
        let (must, aim) = match self.limits {
            Limits::AtMost { must, aim } => (measured <= must, measured <= aim),
            Limits::AtLeast { must, aim } => (measured >= must, measured >= aim),
        };
        if aim {
            "aim met"
        } else if must {
            "must met"
        } else {
            "NOT MET"
        }
    }
}
