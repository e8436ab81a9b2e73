//! The counts that a change is compared with.

use std::{collections::BTreeMap, env::consts, ffi::OsString, fs, path::Path, process::Command};

use serde::{Deserialize, Serialize};
use tower_offload_benches::{BoxError, Table};

use crate::{counters, scenes::EXACT};

/// Maximum increase over the baseline, in percent. With one toolchain the counts vary by a few
/// instructions only. The rest is a margin for unrelated changes that affect how the compiler
/// optimizes a call.
const TOLERANCE: f64 = 3.0;

const RENEW: &str = "cargo bench --bench instructions -- --write";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Baseline {
    toolchain: Toolchain,
    /// Instructions per call.
    scenes: BTreeMap<String, u64>,
}

/// The tools outside of this workspace that the counts depend on. Another compiler generates
/// different code, and another C library has a different allocator.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Toolchain {
    rustc: String,
    target: String,
    libc: String,
    valgrind: String,
}

impl Baseline {
    pub(crate) fn count() -> Result<Self, BoxError> {
        let mut scenes = BTreeMap::new();
        for scene in EXACT {
            scenes.insert(scene.name.to_owned(), counters::valgrind(scene)?);
            eprintln!("[{}/{}] {}", scenes.len(), EXACT.len(), scene.name);
        }
        Ok(Self { toolchain: Toolchain::installed(), scenes })
    }

    pub(crate) fn read(path: &Path) -> Result<Self, BoxError> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(serde_json::from_str(&text).map_err(|error| format!("{} is not a baseline: {error}", path.display()))?)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), BoxError> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?)
    }

    pub(crate) fn table(&self) -> Table {
        Table::new(
            "instructions per call, in user space, on one thread",
            &self.scenes.iter().collect::<Vec<_>>(),
            &[
                ("scene", &|(name, _)| (*name).clone()),
                ("count", &|(_, count)| count.to_string()),
                ("", &|_| String::new()),
            ],
        )
    }

    /// Prints the comparison with `before`. Returns an error if a call costs too much or if the
    /// scenes differ. The counts of another toolchain are printed, but do not cause an error.
    pub(crate) fn check(&self, before: &Self) -> Result<(), BoxError> {
        let mut failures = 0;
        let mut rows = Vec::new();
        for (name, is) in &self.scenes {
            let Some(was) = before.scenes.get(name) else {
                failures += 1;
                rows.push([
                    name.clone(),
                    String::new(),
                    is.to_string(),
                    String::new(),
                    "NOT IN THE BASELINE".to_owned(),
                ]);
                continue;
            };
            let allowed = (*was as f64 * (1.0 + TOLERANCE / 100.0)).floor();
            let change = (*is as f64 / *was as f64 - 1.0) * 100.0;
            let verdict = match () {
                () if *is as f64 > allowed => "  TOO MANY",
                () if change < -TOLERANCE => "  fewer: renew the baseline",
                () => "",
            };
            failures += usize::from(*is as f64 > allowed);
            let change = format!("{change:+.1} %{verdict}");
            rows.push([name.clone(), was.to_string(), is.to_string(), allowed.to_string(), change]);
        }
        for name in before.scenes.keys().filter(|name| !self.scenes.contains_key(*name)) {
            failures += 1;
            rows.push([name.as_str(), "", "", "", "ONLY IN THE BASELINE"].map(str::to_owned));
        }
        let table = Table {
            heading: format!(
                "instructions per call, in user space, on one thread; at most {TOLERANCE} % more are allowed"
            ),
            columns: ["scene", "was", "is", "allowed", "change"].map(str::to_owned).to_vec(),
            rows: rows.into_iter().map(Vec::from).collect(),
        };
        print!("{table}");
        if before.toolchain != self.toolchain {
            let (was, is) = (&before.toolchain, &self.toolchain);
            println!(
                "\nNOT JUDGED: the toolchain differs.\n  was {was:?}\n  is  {is:?}\nRenew the baseline with `{RENEW}`."
            );
            return Ok(());
        }
        match failures {
            0 => Ok(()),
            _ => {
                Err(format!("{failures} scene(s) failed; if that is intended, renew the baseline with `{RENEW}`")
                    .into())
            }
        }
    }
}

impl Toolchain {
    fn installed() -> Self {
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
