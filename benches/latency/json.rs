//! Records as lines of JSON, and back.

use std::{fs, path::Path};

pub(crate) use crate::latency::lines::{open_for_writing, write};
use crate::latency::{BoxError, record::Record};

/// At least one.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>, BoxError> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let records: Vec<Record> = lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| {
                format!("{}, line {}: not a line of this benchmark: {error}", path.display(), number + 1)
            })
        })
        .collect::<Result<_, _>>()?;
    if records.is_empty() { Err(format!("{} is empty", path.display()).into()) } else { Ok(records) }
}
