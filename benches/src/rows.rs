use std::{fmt, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{BoxError, Spread, platform::CpuUsage};

/// Maximum share of the cores, in percent, that other processes may use before a row is marked as
/// disturbed.
const TOLERATED_OTHERS_PCT: f64 = 10.0;

/// A variant in a scene, with one sample for each round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row<S, T> {
    /// The name of the variant.
    pub variant: String,
    /// The scene, which all its variants have in common.
    #[serde(flatten)]
    pub scene: S,
    /// The rounds, in their order.
    pub rounds: Vec<Round<T>>,
}

/// One measurement of a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round<T> {
    /// The figures.
    #[serde(flatten)]
    pub sample: T,
    /// The share of all cores that other processes used, in percent, if the system reports it.
    pub others_cpu_pct: Option<f64>,
}

impl<S, T> Row<S, T> {
    /// Returns a row that was not measured yet.
    pub fn new(variant: impl Into<String>, scene: S) -> Self {
        Self { variant: variant.into(), scene, rounds: Vec::new() }
    }

    /// Returns the spread of `figure` over the rounds for which it is not `None`.
    pub fn spread<F: Into<Option<f64>>>(&self, figure: impl Fn(&T) -> F) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| figure(&round.sample).into()))
    }

    /// Combines the figures of two rows round by round, because both had the same conditions only
    /// within a round.
    pub fn compare<F: Into<Option<f64>>>(
        &self,
        base: &Self,
        figure: impl Fn(&T) -> F,
        combine: impl Fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let rounds = self.rounds.iter().zip(&base.rounds);
        Spread::of(
            rounds.filter_map(|(ours, base)| Some(combine(figure(&ours.sample).into()?, figure(&base.sample).into()?))),
        )
    }

    /// Returns the share of the cores that other processes used in the worst round, in percent.
    pub fn others_pct(&self) -> Option<f64> {
        self.rounds.iter().filter_map(|round| round.others_cpu_pct).reduce(f64::max)
    }

    /// Returns `true` if other processes used more than 10 % of the cores in a round.
    pub fn is_disturbed(&self) -> bool {
        self.others_pct().is_some_and(|others| others > TOLERATED_OTHERS_PCT)
    }
}

/// Returns the first row of this variant in a scene that `scene` selects.
pub fn find<'a, S, T>(rows: &'a [Row<S, T>], scene: impl Fn(&S) -> bool, variant: &str) -> Option<&'a Row<S, T>> {
    rows.iter().find(|row| row.variant == variant && scene(&row.scene))
}

/// Returns the highest share of the cores that other processes used in any round, in percent.
pub fn others_pct<S, T>(rows: &[Row<S, T>]) -> Option<f64> {
    rows.iter().filter_map(Row::others_pct).reduce(f64::max)
}

/// Formats [`others_pct`] for the heading of a table, with the mark `~` if a row was disturbed.
pub fn others_text<S, T>(rows: &[Row<S, T>]) -> String {
    let mark = if rows.iter().any(Row::is_disturbed) { " ~" } else { "" };
    others_pct(rows).map_or_else(String::new, |others| format!(" (others used up to {others:.0} %){mark}"))
}

/// The number of rows that [`interleave`] passes to its closure at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// One row.
    Row,
    /// All rows of a scene.
    Scene,
}

/// Measures all rows `rounds` times, round by round, so that disturbances affect all rows alike.
///
/// Rows of one scene must be adjacent; they are measured one right after the other. Each round
/// begins with another scene, and each scene with another variant. `measure` gets the scene and the
/// variants of one [`Unit`] and returns one sample for each variant.
pub fn interleave<S, T>(
    rows: &mut [Row<S, T>],
    rounds: usize,
    unit: Unit,
    mut measure: impl FnMut(&S, &[&str]) -> Result<Vec<T>, BoxError>,
) -> Result<(), BoxError>
where
    S: Clone + PartialEq + fmt::Display,
{
    let begin = Instant::now();
    let mut scenes: Vec<&mut [Row<S, T>]> = rows.chunk_by_mut(|a, b| a.scene == b.scene).collect();
    let count = scenes.len();
    for round in 0..rounds {
        for position in 0..count {
            let rows = &mut *scenes[(position + round * count / rounds) % count];
            let seconds = begin.elapsed().as_secs();
            eprintln!("[round {}/{rounds}, {}/{count}, {seconds} s] {}", round + 1, position + 1, rows[0].scene);
            let first = round * rows.len() / rounds;
            let order: Vec<usize> = (0..rows.len()).map(|position| (position + first) % rows.len()).collect();
            let unit = if unit == Unit::Row { 1 } else { rows.len() };
            for batch in order.chunks(unit) {
                let variants: Vec<&str> = batch.iter().map(|index| rows[*index].variant.as_str()).collect();
                let before = CpuUsage::now();
                let samples = measure(&rows[0].scene, &variants)?;
                let others_cpu_pct = before.and_then(|before| Some(CpuUsage::now()?.others_pct_since(before)));
                for (index, sample) in batch.iter().zip(samples) {
                    rows[*index].rounds.push(Round { sample, others_cpu_pct });
                }
            }
        }
    }
    Ok(())
}
