//! The store in a SQLite file: the suite, and tests of files and processes.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use futures_util::future::join_all;
use sqlx::Connection;
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{
    Reason, TaskState, TaskStore, Tasks,
    store::{Epoch, SqlStore},
};

use super::{
    store_suite::{Backend, accept, begin, found, queued, running, store_suite},
    support::{done, hold},
};

/// A directory that is deleted with the value.
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

    async fn lose_process(&self, _: Epoch) {} // the next process that begins ends the epoch
}

store_suite!(InFile);

#[tokio::test]
async fn closed_store_is_unavailable_and_can_be_opened_again() {
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

/// Counts the commits in the write-ahead log. The last frame of a commit has the size of the
/// database in its header.
fn commits(folder: &Folder) -> usize {
    let log = std::fs::read(folder.0.join("tasks.db-wal")).unwrap();
    let number = |offset: usize| u32::from_be_bytes(log[offset..offset + 4].try_into().unwrap());
    let frame = 24 + number(8) as usize;
    (32..log.len()).step_by(frame).filter(|offset| number(*offset + 4) > 0).count()
}

#[tokio::test]
async fn tasks_accepted_at_the_same_time_share_commits() {
    let folder = Folder::new();
    let store = folder.open().await;
    let tasks = Tasks::new(store.clone());
    let background = Background::builder().pool(ThreadPool::blocking(1)).max_running(1).build();
    let held = hold(&tasks, &background).await; // so that no other task starts and is written again
    let before = commits(&folder);
    let accepts = (0..64).map(|_| tasks.track("x").spawn_blocking(&background, |_| done()));
    let ids: Vec<_> = join_all(accepts).await.into_iter().map(|accepted| accepted.unwrap().id()).collect();
    let commits = commits(&folder) - before;
    assert!((1..8).contains(&commits), "64 tasks took {commits} commits");
    store.close().await.unwrap();
    let store = folder.open().await;
    for id in ids {
        assert!(store.get(id).await.unwrap().into_record().is_some());
    }
    held.release();
}

/// The child is this binary again, with the test `child` below.
#[tokio::test]
async fn locked_file_names_its_process_and_is_free_after_a_kill() {
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
    let source = error.to_string();
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
async fn second_handle_in_one_process_names_this_process() {
    let folder = Folder::new();
    let store = folder.open().await;
    let link = folder.0.join("link.db");
    std::os::unix::fs::symlink(folder.file(), &link).unwrap();
    for path in [&folder.file(), &link] {
        let error = SqlStore::open(&format!("sqlite:{}", path.display())).await.unwrap_err();
        assert!(error.is_locked());
        let source = error.to_string();
        assert!(source.contains("is in use by this process: clone its `SqlStore`"), "{source}");
    }
    store.close().await.unwrap();
    let relative = PathBuf::from("..").join(folder.0.file_name().unwrap()).join("tasks.db");
    let again = folder.0.join(relative);
    let store = SqlStore::open(&format!("sqlite:{}", again.display())).await.unwrap();
    drop(store);
}

#[tokio::test]
async fn parameters_are_honoured_or_refused_by_name() {
    let folder = Folder::new();
    let open =
        async |parameters: &str| SqlStore::open(&format!("sqlite:{}{parameters}", folder.file().display())).await;
    let error = open("?mode=rw").await.unwrap_err();
    assert!(error.is_unavailable() && source(&error).contains("does not exist"), "{}", source(&error));
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0, "no file is left behind");
    for (parameters, name) in [
        ("?mode=ro", "mode=ro"),
        ("?mode=memory", "`MemoryStore`"),
        ("?mode=rwx", "`mode`"),
        ("?cache=shared", "`cache`"),
        ("?mode=rwc&immutable=1", "`immutable`"),
    ] {
        let error = open(parameters).await.unwrap_err();
        assert!(source(&error).contains(name), "{parameters}: {}", source(&error));
    }
    for parameters in ["?mode=rwc", "?mode=rw", "?", "?mode=rw&"] {
        open(parameters).await.unwrap().close().await.unwrap();
    }
    let files = std::fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().file_name());
    assert!(files.into_iter().all(|file| !file.to_string_lossy().contains('?')));
}

fn source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Another connection writes for longer than all of them may wait.
#[tokio::test(flavor = "multi_thread")]
async fn callers_wait_for_others_at_most_five_seconds_in_total() {
    let folder = Folder::new();
    let store = folder.open().await;
    let epoch = begin(&store).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.file());
    let mut other = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let writing = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let start = tokio::time::Instant::now();
    let callers = (0..4).map(|number| {
        let store = store.clone();
        async move {
            // Some arrive while others wait. In real time, because SQLite has its own timer.
            tokio::time::sleep(std::time::Duration::from_millis(u64::from(number) * 300)).await;
            let error = store.write(epoch, &[accept(&queued(number))]).await.unwrap_err();
            (error, start.elapsed())
        }
    });
    for (number, (error, elapsed)) in join_all(callers).await.into_iter().enumerate() {
        assert!(error.is_unavailable(), "{error:?}");
        assert!(source(&error).contains("short"), "{}", source(&error));
        // One after the other, the last one would wait for 20 s. A busy machine adds to the 5 s.
        assert!(elapsed.as_secs() < 15, "{number}: {elapsed:?}");
    }
    writing.rollback().await.unwrap();
    store.write(epoch, &[accept(&queued(9))]).await.unwrap();
    assert!(found(&store, 9).await.is_some());
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Note;

impl tower_offload_tasks::jobs::Job for Note {
    const KIND: &'static str = "note";
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_transaction_that_cannot_write_names_the_remedy() {
    let folder = Folder::new();
    let tasks = Tasks::new(folder.open().await);
    let jobs = tower_offload_tasks::jobs::Jobs::builder(&tasks).start().await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.file());
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let mut deferred = connection.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM river_job").execute(&mut *deferred).await.unwrap();
    let _accepted = jobs.enqueue(Note).await.unwrap();
    let error = jobs.enqueue(Note).tx(&mut deferred).await.unwrap_err();
    assert!(source(&error).contains("BEGIN IMMEDIATE"), "{}", source(&error));
}

#[tokio::test]
async fn missing_or_deleted_directory_is_unavailable() {
    let error = SqlStore::open("sqlite:///nowhere/at/all.db").await.unwrap_err();
    assert!(error.is_unavailable());
    let source = error.to_string();
    assert!(source.contains("/nowhere/at/all.db"), "{source}");

    let folder = Folder::new();
    let store = folder.open().await;
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();
    std::fs::remove_dir_all(&folder.0).unwrap();
    assert!(store.write(epoch, &[accept(&queued(2))]).await.unwrap_err().is_unavailable());
}

/// A reader keeps SQLite from starting the write-ahead log again, so that it grows.
#[tokio::test]
async fn write_ahead_log_that_grew_shrinks_after_its_readers() {
    const MIB: u64 = 1 << 20;
    let folder = Folder::new();
    let store = folder.open().await;
    let epoch = begin(&store).await;
    let log = || std::fs::metadata(folder.0.join("tasks.db-wal")).unwrap().len();
    let url = format!("sqlite://{}", folder.file().display());
    let mut reader = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM tower_offload_task").execute(&mut reader).await.unwrap();
    let mut writer = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE large AS SELECT randomblob(20000000) AS bytes").execute(&mut writer).await.unwrap();
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();
    assert!(log() > 16 * MIB);
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    store.write(epoch, &[accept(&queued(2))]).await.unwrap(); // copies the log to the file
    store.write(epoch, &[accept(&queued(3))]).await.unwrap();
    assert_eq!(log(), 8 * MIB);
}

#[tokio::test]
async fn unsupported_url_is_rejected_without_its_password() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:", "mysql://user:secret@host/tasks"] {
        let error = SqlStore::open(url).await.unwrap_err();
        assert!(!error.is_full() && !error.is_locked() && !error.is_unavailable());
        assert!(!error.to_string().contains("secret"));
    }
}

#[tokio::test]
async fn schema_of_a_newer_version_is_rejected() {
    let folder = Folder::new();
    folder.open().await.close().await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.file());
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let newer = "INSERT INTO tower_offload_migration (version, applied_at) VALUES (99, 0)";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    let error = SqlStore::open(&format!("sqlite:{}", folder.file().display())).await.unwrap_err();
    let source = error.to_string();
    assert!(source.contains("version 99"), "{source}");
}
