//! The counters: this program under valgrind or perf.

use std::{
    env,
    process::{Command, Stdio},
};

use tower_offload_benches::BoxError;

use crate::scenes::Scene;

/// Factor for the number of calls without valgrind. The program is faster then, and needs more
/// calls to average out the noise of other processes.
const HARDWARE_FACTOR: u64 = 50;

/// Returns the instructions of one call in user space, on all threads, as valgrind counts them.
///
/// Runs N and 2N calls. The difference between the two counts is the cost of N calls, without the
/// start and the end of the process.
pub(crate) fn valgrind(scene: &Scene) -> Result<u64, BoxError> {
    let run = |calls| {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            // Valgrind runs one thread at a time. Without fairness a spinning thread starves the
            // threads it waits for. By default valgrind has room for 500 threads, and
            // `spawn_blocking` starts up to 512.
            .args(["--fair-sched=try", "--max-threads=1000"])
            .arg(env::current_exe()?)
            .args(arguments(scene, calls)?)
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let counted = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
        counted
            .filter(|_| output.status.success())
            .ok_or_else(|| BoxError::from(format!("{} failed under valgrind ({}):\n{text}", scene.name, output.status)))
    };
    Ok(run(2 * scene.calls)?.saturating_sub(run(scene.calls)?) / scene.calls)
}

/// Returns the instructions of one call in user space and in the kernel, as the processor counts
/// them.
///
/// Returns `None` without `perf` or without counters. Few virtual machines have them, and
/// `perf_event_paranoid` may hide the kernel's counters.
pub(crate) fn hardware(scene: &Scene) -> Option<u64> {
    let run = |calls| {
        let output = Command::new("perf")
            .args(["stat", "-x,", "-e", "instructions:u,instructions:k"])
            .arg(env::current_exe().ok()?)
            .args(arguments(scene, calls).ok()?)
            .stdin(Stdio::null())
            .output()
            .ok()?;
        // Each line is `count,unit,event,..`. The count is not a number if there is no counter.
        let text = String::from_utf8_lossy(&output.stderr);
        let of = |event: &str| text.lines().find(|line| line.contains(event))?.split(',').next()?.parse::<u64>().ok();
        Some(of("instructions:u")? + of("instructions:k")?).filter(|_| output.status.success())
    };
    let calls = scene.calls * HARDWARE_FACTOR;
    Some(run(2 * calls)?.saturating_sub(run(calls)?) / calls)
}

/// Returns the arguments with which this program makes `calls` calls and ends.
fn arguments(scene: &Scene, calls: u64) -> Result<[String; 2], BoxError> {
    Ok(["run".to_owned(), serde_json::to_string(&(scene.name, calls))?])
}
