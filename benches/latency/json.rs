//! Records as lines of JSON, and back.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, Write as _},
    path::Path,
};

use crate::latency::{BoxError, record::Record};

/// Opens without emptying: an interrupted run leaves the figures of the last one alone.
pub(crate) fn open_for_writing(path: &Path) -> Result<File, BoxError> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// Replaces what is in the file.
pub(crate) fn write(file: &mut File, records: &[Record]) -> Result<(), BoxError> {
    file.set_len(0)?;
    file.rewind()?;
    for record in records {
        serde_json::to_writer(&mut *file, record)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

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
