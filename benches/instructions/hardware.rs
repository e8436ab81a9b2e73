//! The processor's own counters, which count the kernel's instructions too. Few virtual machines have them, and
//! `perf_event_paranoid` may forbid the kernel's; then there is no such column.

use std::{
    env,
    process::{Command, Stdio},
};

use crate::scenes::Scene;

/// Not slowed down by valgrind, so it may be many more calls; they have to drown other processes' noise, too.
const TIMES: u64 = 50;

/// The instructions of one call, user's and kernel's, as in [`per_call`](crate::callgrind::per_call).
pub(crate) fn per_call(scene: &Scene) -> Option<u64> {
    let calls = scene.calls * TIMES;
    let (once, twice) = (run(scene, calls)?, run(scene, 2 * calls)?);
    Some(twice.saturating_sub(once) / calls)
}

fn run(scene: &Scene, calls: u64) -> Option<u64> {
    let output = Command::new("perf")
        .args(["stat", "-x,", "-e", "instructions:u,instructions:k"])
        .arg(env::current_exe().ok()?)
        .args(["run", scene.name, &calls.to_string()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    // `count,unit,event,..`, a line for each; the count is a text where there is no counter.
    let text = String::from_utf8_lossy(&output.stderr);
    let of = |event: &str| text.lines().find(|line| line.contains(event))?.split(',').next()?.parse::<u64>().ok();
    Some(of("instructions:u")? + of("instructions:k")?).filter(|_| output.status.success())
}
