use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use super::error::file_error;
use crate::{StoreError, Timestamp};

/// Says that a process has a database, for as long as it lives: the system takes the lock back when the process ends, however it does. The
/// file stays; whether it is locked counts.
///
/// A file of its own, for SQLite's own locks on the database come and go, and closing any handle of it loses them.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

const SUFFIX: &str = ".tower-offload.lock";

impl FileLock {
    /// # Errors
    ///
    /// [`StoreError::is_locked`] if another one has it; the source names its process.
    #[allow(clippy::incompatible_msrv, reason = "sqlx asks for a later Rust than `try_lock` does")]
    pub(super) fn acquire(database: &Path) -> Result<Self, StoreError> {
        let path = beside(database);
        let failed = |error| file_error(format!("cannot lock {}", path.display()), error);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // It is for people only; what cannot be read changes nothing.
                let _ = file.read_to_string(&mut owner);
                let owner = if owner.is_empty() { "a process that has just begun" } else { owner.trim() };
                return Err(StoreError::locked(format!("{} is in use by {owner}", database.display())));
            }
        }
        let noted =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(this_process().as_bytes()));
        noted.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn this_process() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "this host" } else { host.trim() };
    let since = Timestamp::from(std::time::SystemTime::now());
    format!("process {} on {host} since {since}\n", std::process::id())
}

/// Of a database that several links lead to always the same file.
fn beside(database: &Path) -> PathBuf {
    let mut path = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned()).into_os_string();
    path.push(SUFFIX);
    path.into()
}
