//! Measures what a quiet tenant notices of one that makes 1000 times as many calls, ten times what
//! the pool can run.

use std::process::ExitCode;

use tower_offload_benches::{Options, Picture, fairness};

fn main() -> ExitCode {
    let mut options = Options::parse("fairness", "Measures what a quiet tenant notices of a greedy one");
    if !options.filter.is_empty() {
        options.filter.extend([fairness::ALONE.to_owned(), fairness::FIFO.to_owned()]);
    }
    options.run("fairness", fairness::rows, fairness::run, |rows| {
        fairness::measure(rows, options.quick)?;
        Picture::write_all("fairness", &[fairness::picture(rows)?])?;
        Ok(fairness::text(rows))
    })
}
