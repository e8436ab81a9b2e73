use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs::{self, OpenOptions},
    mem,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{BoxError, Row, Spread, platform};

/// The command line of a benchmark.
#[derive(Debug, Args)]
pub struct Options {
    /// Measure a few short rounds, to see that everything works; the figures mean little
    #[arg(long)]
    pub quick: bool,

    /// Also write the figures to FILE, one JSON object per row
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Measure only variants with this name, or with this in their name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub filter: Vec<String>,

    /// Print the rows and measure nothing
    #[arg(long)]
    pub list: bool,

    #[command(flatten)]
    internal: Internal,
}

/// Arguments that are not for users.
#[derive(Debug, Args)]
pub struct Internal {
    /// Cargo passes it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Runs one order; see [`child`](crate::child)
    #[command(hide = true)]
    Run { order: String },
}

impl Internal {
    /// Returns the order that the parent process passed, if this is a child process.
    pub fn order<O: DeserializeOwned>(&self) -> Result<Option<O>, BoxError> {
        let Some(Role::Run { order }) = &self.role else { return Ok(None) };
        Ok(Some(serde_json::from_str(order)?))
    }
}

impl Options {
    /// Parses the command line of a benchmark that has no options of its own.
    pub fn parse(bench: &str, about: &'static str) -> Self {
        #[derive(Parser)]
        struct Arguments {
            #[command(flatten)]
            options: Options,
        }
        let command = Arguments::command().bin_name(format!("cargo bench --bench {bench} --")).about(about);
        let arguments = Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
        arguments.options
    }

    /// Runs a benchmark according to the command line.
    ///
    /// In a child process this calls `child` with the order. Otherwise it calls `measure` with the
    /// rows that pass the filter, prints the report that `measure` returns, and writes the JSON
    /// file.
    ///
    /// Ctrl-C needs no handling: it ends the process and its children, and files are written at the
    /// end.
    pub fn run<S, T, O, A>(
        &self,
        bench: &str,
        rows: impl FnOnce() -> Vec<Row<S, T>>,
        child: impl FnOnce(O) -> Result<A, BoxError>,
        measure: impl FnOnce(&mut Vec<Row<S, T>>) -> Result<String, BoxError>,
    ) -> ExitCode
    where
        S: Serialize + fmt::Display,
        T: Serialize,
        O: DeserializeOwned,
        A: Serialize,
    {
        finish(bench, || {
            if let Some(order) = self.internal.order()? {
                println!("{}", serde_json::to_string(&child(order)?)?);
                return Ok(());
            }
            let mut rows = self.matching(rows())?;
            if self.list {
                rows.iter().for_each(|row| println!("{bench}: {}: {}", row.scene, row.variant));
                return Ok(());
            }
            if cfg!(debug_assertions) {
                // `cargo test --all-targets` runs benchmarks without optimisation.
                eprintln!("{bench}: built without optimisation, so nothing is measured; use `cargo bench`");
                return Ok(());
            }
            self.json.as_deref().map(check_writable).transpose()?;
            let report = measure(&mut rows)?;
            println!("{bench}: {} cores, {}\n\n{report}", platform::parallelism(), platform::system());
            self.json.as_deref().map(|path| write_json(path, bench, &rows)).transpose()?;
            Ok(())
        })
    }

    /// Returns the rows whose variant matches a filter. A filter matches the variant of that name
    /// or, if there is none, every variant whose name contains it.
    fn matching<S, T>(&self, rows: Vec<Row<S, T>>) -> Result<Vec<Row<S, T>>, BoxError> {
        let is_exact = |filter: &str| rows.iter().any(|row| row.variant == filter);
        let matches = |row: &Row<S, T>, filter: &str| {
            if is_exact(filter) { row.variant == filter } else { row.variant.contains(filter) }
        };
        if let Some(filter) = self.filter.iter().find(|filter| !rows.iter().any(|row| matches(row, filter))) {
            let mut names: Vec<&str> = rows.iter().map(|row| row.variant.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            return Err(format!("no variant matches `{filter}`; the variants are {}", names.join(", ")).into());
        }
        let is_wanted = |row: &Row<S, T>| self.filter.is_empty() || self.filter.iter().any(|it| matches(row, it));
        let wanted: Vec<bool> = rows.iter().map(is_wanted).collect();
        Ok(rows.into_iter().zip(wanted).filter_map(|(row, wanted)| wanted.then_some(row)).collect())
    }
}

/// Runs `main` and reports its error.
pub fn finish(program: &str, main: impl FnOnce() -> Result<(), BoxError>) -> ExitCode {
    match main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns an error if `path` cannot be written, so that the error is reported before anything is
/// measured. Does not change the file.
pub fn check_writable(path: &Path) -> Result<(), BoxError> {
    let is_new = !path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    if is_new {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Writes one JSON object per row: the variant, the scene, all rounds, and the medians of the
/// rounds.
pub fn write_json<S: Serialize, T: Serialize>(path: &Path, bench: &str, rows: &[Row<S, T>]) -> Result<(), BoxError> {
    write_text(path, &json_lines(bench, rows)?)
}

/// Returns the text that [`write_json`] writes.
pub fn json_lines<S: Serialize, T: Serialize>(bench: &str, rows: &[Row<S, T>]) -> Result<String, BoxError> {
    let machine = json!({ "cores": platform::parallelism(), "system": platform::system() });
    let mut text = String::new();
    for row in rows {
        let Value::Object(object) = serde_json::to_value(row)? else { return Err("a row is not an object".into()) };
        let mut line = Map::from_iter([("bench".to_owned(), bench.into()), ("machine".to_owned(), machine.clone())]);
        line.extend(object);
        line.insert("median".to_owned(), json!(medians(&line["rounds"])));
        writeln!(text, "{}", Value::Object(line))?;
    }
    Ok(text)
}

/// Writes a file.
pub fn write_text(path: &Path, text: &str) -> Result<(), BoxError> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// Returns the median of every number in the rounds.
fn medians(rounds: &Value) -> BTreeMap<&str, f64> {
    let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in rounds.as_array().into_iter().flatten().filter_map(Value::as_object).flatten() {
        figures.entry(name).or_default().extend(value.as_f64());
    }
    figures.into_iter().filter_map(|(name, values)| Some((name, Spread::of(values)?.median))).collect()
}

/// The rows of files that [`write_json`] wrote, of any benchmark.
#[derive(Debug, Default)]
pub struct JsonRows {
    /// The benchmark, the object, and its position for messages.
    lines: Vec<(String, Value, String)>,
}

impl JsonRows {
    /// Reads a file, after those that were read before.
    pub fn read(&mut self, path: &Path) -> Result<(), BoxError> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let before = self.lines.len();
        for (index, line) in lines {
            let position = format!("{}, line {}", path.display(), index + 1);
            let value: Value = serde_json::from_str(line).map_err(|error| format!("{position}: no JSON: {error}"))?;
            let bench = value["bench"].as_str().ok_or_else(|| format!("{position}: not a row of a benchmark"))?;
            self.lines.push((bench.to_owned(), value, position));
        }
        if self.lines.len() == before { Err(format!("{} is empty", path.display()).into()) } else { Ok(()) }
    }

    /// Removes and returns the rows of a benchmark.
    pub fn take<S: DeserializeOwned, T: DeserializeOwned>(&mut self, bench: &str) -> Result<Vec<Row<S, T>>, BoxError> {
        let (taken, others) = mem::take(&mut self.lines).into_iter().partition::<Vec<_>, _>(|(name, ..)| name == bench);
        self.lines = others;
        let rows = taken.into_iter().map(|(_, value, position)| {
            serde_json::from_value(value).map_err(|error| format!("{position}: not a row of `{bench}`: {error}").into())
        });
        rows.collect()
    }

    /// Returns an error if there are rows that were not taken.
    pub fn finish(self) -> Result<(), BoxError> {
        match self.lines.first() {
            Some((bench, _, position)) => Err(format!("{position}: rows of `{bench}` are not on this page").into()),
            None => Ok(()),
        }
    }
}
