//! The store in an SQLite file: the suite, and what is its own.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use futures_util::future::join_all;
use sqlx::Connection;
use tower_offload_tasks::{
    Reason, TaskState, TaskStore,
    store::{Epoch, SqlStore, Written},
};

use super::store_suite::{Backend, accept, begin, found, queued, running, store_suite};

/// A folder that goes with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let path = std::env::temp_dir().join(format!("tower-offload-{:016x}", u64::from_ne_bytes(random)));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("tasks.db")
    }

    async fn open(&self) -> SqlStore {
        SqlStore::open(&format!("sqlite://{}", self.file().display())).await.unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct InFile {
    _folder: Folder,
    store: SqlStore,
}

impl Backend for InFile {
    type Store = SqlStore;

    async fn fresh() -> Option<Self> {
        let folder = Folder::new();
        Some(Self { store: folder.open().await, _folder: folder })
    }

    async fn open(&self) -> SqlStore {
        self.store.clone()
    }

    async fn lose_process(&self, _: Epoch) {} // the next to begin has the store
}

store_suite!(InFile);

#[tokio::test]
async fn a_closed_store_is_unavailable_and_what_it_wrote_is_there_when_it_is_opened_again() {
    let folder = Folder::new();
    let store = folder.open().await;
    let epoch = begin(&store).await;
    let written = running(1);
    store.write(epoch, &[accept(&written)]).await.unwrap();
    store.close().await.unwrap();
    assert!(store.write(epoch, &[accept(&queued(2))]).await.unwrap_err().is_unavailable());
    assert!(store.renew(epoch).await.unwrap_err().is_unavailable());

    let store = folder.open().await;
    assert_eq!(found(&store, 1).await.unwrap(), written);
    assert!(begin(&store).await > epoch);
    let record = found(&store, 1).await.unwrap();
    assert_eq!((record.state, record.reason), (TaskState::Lost, Some(Reason::ProcessLost)));
}

/// A commit is a frame in the write-ahead log with the size of the database.
fn commits(folder: &Folder) -> usize {
    let log = std::fs::read(folder.0.join("tasks.db-wal")).unwrap();
    let number = |place: usize| u32::from_be_bytes(log[place..place + 4].try_into().unwrap());
    let frame = 24 + number(8) as usize;
    (32..log.len()).step_by(frame).filter(|place| number(*place + 4) > 0).count()
}

#[tokio::test]
async fn what_is_accepted_at_once_shares_commits_and_all_of_it_is_there_after_it_is_opened_again() {
    let folder = Folder::new();
    let store = folder.open().await;
    let epoch = begin(&store).await;
    let before = commits(&folder);
    let accepts = (0..64).map(|number| {
        let store = &store;
        async move { store.write(epoch, &[accept(&queued(number))]).await.unwrap() }
    });
    assert!(join_all(accepts).await.iter().all(|written| *written == [Written::Done]));
    let commits = commits(&folder) - before;
    assert!((1..8).contains(&commits), "64 accepts took {commits} commits");
    store.close().await.unwrap();
    let store = folder.open().await;
    for number in 0..64 {
        assert!(found(&store, number).await.is_some());
    }
}

/// P13. The child is this program again, with the one test below.
#[tokio::test]
async fn a_second_process_is_told_who_has_the_file_and_has_it_once_that_one_is_killed() {
    let folder = Folder::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite_store::child", "--nocapture"])
        .env("TOWER_OFFLOAD_CHILD", folder.file())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("accepted")));

    let error = SqlStore::open(&format!("sqlite:{}", folder.file().display())).await.unwrap_err();
    assert!(error.is_locked());
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains(&format!("process {} on", child.id())), "{source}");

    child.kill().unwrap();
    child.wait().unwrap();
    let store = folder.open().await;
    begin(&store).await;
    for number in 1..=3 {
        assert_eq!(found(&store, number).await.unwrap().state, TaskState::Lost);
    }
}

#[tokio::test]
async fn child() {
    let Some(file) = std::env::var_os("TOWER_OFFLOAD_CHILD") else { return };
    let store = SqlStore::open(&format!("sqlite:{}", file.display())).await.unwrap();
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&running(1)), accept(&running(2)), accept(&queued(3))]).await.unwrap();
    println!("accepted");
    let _ = std::io::stdin().read_line(&mut String::new()); // until it is killed
}

#[tokio::test]
async fn a_second_handle_in_one_process_is_told_so_too() {
    let folder = Folder::new();
    let store = folder.open().await;
    let link = folder.0.join("link.db");
    std::os::unix::fs::symlink(folder.file(), &link).unwrap();
    assert!(SqlStore::open(&format!("sqlite:{}", link.display())).await.unwrap_err().is_locked());
    drop(store);
}

#[tokio::test]
async fn a_folder_that_is_not_there_or_goes_away_is_a_clear_error_and_no_record_is_taken() {
    let error = SqlStore::open("sqlite:///nowhere/at/all.db").await.unwrap_err();
    assert!(error.is_unavailable());
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("/nowhere/at/all.db"), "{source}");

    let folder = Folder::new();
    let store = folder.open().await;
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();
    std::fs::remove_dir_all(&folder.0).unwrap();
    assert!(store.write(epoch, &[accept(&queued(2))]).await.unwrap_err().is_unavailable());
}

#[tokio::test]
async fn a_database_in_memory_and_an_unknown_scheme_are_refused_without_the_password() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:", "mysql://user:secret@host/tasks"] {
        let error = SqlStore::open(url).await.unwrap_err();
        assert!(!error.is_full() && !error.is_locked() && !error.is_unavailable());
        assert!(!std::error::Error::source(&error).unwrap().to_string().contains("secret"));
    }
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused_and_stays_as_it_is() {
    let folder = Folder::new();
    folder.open().await.close().await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.file());
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let newer = "INSERT INTO tower_offload_migration (version, applied_at) VALUES (99, 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    let error = SqlStore::open(&format!("sqlite:{}", folder.file().display())).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("version 99"), "{source}");
}
