//! What calls cost when somebody last looked, and with what it was built.

use std::{collections::BTreeMap, env::consts, ffi::OsString, fs, path::Path, process::Command};

use serde::{Deserialize, Serialize};

use crate::{BoxError, callgrind, scenes::EXACT};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Baseline {
    pub(crate) toolchain: Toolchain,
    /// Instructions a call.
    pub(crate) scenes: BTreeMap<String, u64>,
}

/// Counts of another compiler's code, or with another C library's allocator and memory routines, say nothing of a change
/// of ours.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Toolchain {
    pub(crate) rustc: String,
    pub(crate) target: String,
    pub(crate) libc: String,
    pub(crate) valgrind: String,
}

impl Baseline {
    pub(crate) fn count() -> Result<Self, BoxError> {
        let mut scenes = BTreeMap::new();
        for scene in EXACT {
            scenes.insert(scene.name.to_owned(), callgrind::per_call(scene)?);
            eprintln!("[{}/{}] {}", scenes.len(), EXACT.len(), scene.name);
        }
        Ok(Self { toolchain: Toolchain::here(), scenes })
    }

    pub(crate) fn read(path: &Path) -> Result<Self, BoxError> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(serde_json::from_str(&text).map_err(|error| format!("{} is no baseline: {error}", path.display()))?)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), BoxError> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?)
    }
}

impl Toolchain {
    fn here() -> Self {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        Self {
            rustc: first_line(Command::new(rustc).arg("--version")),
            target: format!("{}-{}", consts::ARCH, consts::OS),
            libc: first_line(Command::new("ldd").arg("--version")),
            valgrind: first_line(Command::new("valgrind").arg("--version")),
        }
    }
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_owned()
}
