//! Runs this program under valgrind and reads what that counted.

use std::{
    env,
    process::{Command, Stdio},
};

use crate::{BoxError, scenes::Scene};

pub(crate) fn is_there() -> bool {
    Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The instructions of one call: of twice as many calls less those of as many, so that starting and ending, which both
/// runs do once, are not in it.
pub(crate) fn per_call(scene: &Scene) -> Result<u64, BoxError> {
    let (once, twice) = (run(scene, scene.calls)?, run(scene, 2 * scene.calls)?);
    Ok(twice.saturating_sub(once) / scene.calls)
}

/// All instructions of a run, on all of its threads, in user space.
fn run(scene: &Scene, calls: u64) -> Result<u64, BoxError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // Threads take turns: without fairness the one that spins keeps the others from what it waits for. And valgrind
        // makes room for 500 of them unless told otherwise, `spawn_blocking` starts up to 512.
        .args(["--fair-sched=try", "--max-threads=1000"])
        .arg(env::current_exe()?)
        .args(["run", scene.name, &calls.to_string()])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let counted = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match counted {
        Some(instructions) if output.status.success() => Ok(instructions),
        _ => Err(format!("{} failed under valgrind ({}):\n{text}", scene.name, output.status).into()),
    }
}
