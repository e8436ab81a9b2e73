//! A run in a process of its own, of which nothing is left when the next one starts. Both sides of it.

use std::{
    fmt::Display,
    io::{self, Write},
    process::{Command, Stdio},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::BoxError;

/// The parent's side: starts this program again with the order, and sleeps until it has answered. `name` is for the error.
pub(crate) fn run<T: DeserializeOwned>(order: &impl Serialize, name: impl Display) -> Result<T, BoxError> {
    let child = Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(serde_json::to_string(order)?)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !child.status.success() {
        return Err(format!("{name} failed ({})", child.status).into());
    }
    Ok(serde_json::from_slice(&child.stdout)?)
}

/// The child's side, at its end.
pub(crate) fn answer(answer: &impl Serialize) -> Result<(), BoxError> {
    serde_json::to_writer(io::stdout(), answer)?;
    Ok(io::stdout().flush()?)
}
