//! Measures one process beside several workers that serve one port: how connections are distributed
//! over them, the latency, and the cost of a `kill -9`.
// Benchmarks measure real time, so the ban on the standard library's clock does not apply.
#![allow(clippy::disallowed_types)]

#[cfg(unix)]
mod bench;

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    bench::main()
}

#[cfg(not(unix))]
fn main() {
    eprintln!("workers: this benchmark needs Unix");
}
