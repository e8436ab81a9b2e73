//! Figures as lines of JSON.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, Write as _},
    path::Path,
};

use serde::Serialize;

/// Opens without emptying: an interrupted run leaves the figures of the last one alone.
pub(crate) fn open_for_writing(path: &Path) -> Result<File, String> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Replaces what is in the file.
pub(crate) fn write<R: Serialize>(file: &mut File, records: &[R]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    for record in records {
        serde_json::to_writer(&mut *file, record)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}
