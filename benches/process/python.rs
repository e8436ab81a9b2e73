//! Python's process pools, measured by a script.

use std::process::{Command, Output};

use tower_offload_benches::BoxError;

use crate::{Order, PROCESSES, SIZE, Sample};

const PROGRAM: &str = "python3";
const SCRIPT: &str = include_str!("python.py");

/// Returns the version of Python, such as `Python 3.11.7`, or `None` if there is no Python.
pub(crate) fn version() -> Option<String> {
    let Output { status, stdout, .. } = Command::new(PROGRAM).arg("--version").output().ok()?;
    status.success().then(|| String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// Runs the script, which ends by itself.
pub(crate) fn run(order: &Order) -> Result<Sample, BoxError> {
    let Order { variant, scene, phases } = order;
    let task = serde_json::to_value(scene.task)?;
    let task = task.as_str().ok_or("a task is a name")?;
    let numbers = [PROCESSES, SIZE, scene.in_flight, phases.starts].map(|number| number.to_string());
    let seconds = [phases.warm_up, phases.measure].map(|length| length.as_secs_f64().to_string());
    let mut command = Command::new(PROGRAM);
    command.args(["-c", SCRIPT, variant, task]).args(numbers).args(seconds);
    let Output { status, stdout, stderr } = command.output()?;
    if !status.success() {
        return Err(format!("{PROGRAM}: {status}: {}", String::from_utf8_lossy(&stderr)).into());
    }
    Ok(serde_json::from_slice(&stdout)?)
}
