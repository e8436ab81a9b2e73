//! Child processes. Each run has its own, so that no thread and no allocation of one run affects
//! the next.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::BoxError;

/// Returns a command that starts this program again and passes `order` to the child's side of
/// [`Options::run`](crate::Options::run).
pub fn command(order: &impl Serialize) -> Result<Command, BoxError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").arg(serde_json::to_string(order)?);
    Ok(command)
}

/// Runs `order` in a child process and returns its result. The parent sleeps until then.
///
/// A run that takes longer than `timeout` has lost a call. Then the child is killed and an error is
/// returned.
pub fn run<T: DeserializeOwned>(order: &impl Serialize, timeout: Duration) -> Result<T, BoxError> {
    run_with_env(order, None, timeout)
}

/// Waits until a child has ended, and kills it after `timeout`.
pub fn end(child: &mut Child, timeout: Duration) {
    let start = Instant::now();
    while let Ok(None) = child.try_wait() {
        if start.elapsed() > timeout {
            // Fails only if the process has just ended.
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Like [`run`], with an environment variable for the child.
pub fn run_with_env<T: DeserializeOwned>(
    order: &impl Serialize,
    env: Option<(&str, &str)>,
    timeout: Duration,
) -> Result<T, BoxError> {
    let mut child = command(order)?.envs(env).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("the child has no standard output")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut output = Vec::new();
        // The receiver was dropped if the timeout has elapsed.
        let _ = sender.send(stdout.read_to_end(&mut output).map(|_| output));
    });
    let Ok(output) = receiver.recv_timeout(timeout) else {
        child.kill()?;
        child.wait()?;
        return Err(format!("{} took longer than {timeout:?}", serde_json::to_string(order)?).into());
    };
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("{} failed ({status})", serde_json::to_string(order)?).into());
    }
    Ok(serde_json::from_slice(&output?)?)
}
