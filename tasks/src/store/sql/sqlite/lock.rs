use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::{
    StoreError, Timestamp,
    store::sql::error::file_error,
    sync::{Mutex, lock},
};

/// Exclusive use of a database by this process.
///
/// The operating system releases the lock when the process ends in any way. The lock file is not
/// deleted; only its lock counts. It is a file of its own because SQLite locks and unlocks the
/// database file, and closing any handle of a file releases POSIX locks on it.
#[derive(Debug)]
pub(super) struct FileLock {
    path: PathBuf,
    _file: File,
}

/// The lock files that this process has locked. Otherwise an error about a second handle in one
/// process would speak of another process.
static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

const SUFFIX: &str = ".tower-offload.lock";

impl FileLock {
    /// Locks the database, and notes this process in the lock file for error messages.
    ///
    /// # Errors
    ///
    /// [`StoreError::is_locked`] if another process has the lock, which the source names, or if
    /// this process has it.
    #[allow(clippy::incompatible_msrv, reason = "sqlx requires a later version of Rust than `try_lock`")]
    pub(super) fn acquire(database: &Path) -> Result<Self, StoreError> {
        let path = lock_path(database);
        let failed = |error| file_error(format!("cannot lock {}", path.display()), error);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                if lock(&HELD).contains(&path) {
                    return Err(StoreError::locked(format!(
                        "{} is in use by this process: clone its `SqlStore`, or close it first",
                        database.display()
                    )));
                }
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner); // only for the message
                let owner = if owner.is_empty() { "a process that has just started" } else { owner.trim() };
                return Err(StoreError::locked(format!(
                    "{} is in use by {owner}: end that process, or use a file for each process, or Postgres for all",
                    database.display()
                )));
            }
        }
        let noted =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(this_process().as_bytes()));
        noted.map_err(failed)?;
        lock(&HELD).insert(path.clone());
        Ok(Self { path, _file: file })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        lock(&HELD).remove(&self.path);
    }
}

fn this_process() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "this host" } else { host.trim() };
    let since = Timestamp::from(std::time::SystemTime::now());
    format!("process {} on {host} since {since}\n", std::process::id())
}

/// Returns the same lock file for all links to one database.
fn lock_path(database: &Path) -> PathBuf {
    let mut path = fs::canonicalize(database).unwrap_or_else(|_| new_path(database)).into_os_string();
    path.push(SUFFIX);
    path.into()
}

/// Returns the canonical path of a file that does not exist.
fn new_path(database: &Path) -> PathBuf {
    let directory = database.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = fs::canonicalize(directory.unwrap_or(Path::new(".")));
    match (directory, database.file_name()) {
        (Ok(directory), Some(name)) => directory.join(name),
        _ => database.to_owned(),
    }
}
