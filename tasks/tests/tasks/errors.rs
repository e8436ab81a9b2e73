//! Errors say what failed, with which value, and the remedy. A program that prints `{error}` shows
//! all of it.

use std::{convert::Infallible, error::Error, fmt::Write, fs, time::Duration};

use tower_offload::Background;
use tower_offload_tasks::{
    AcceptError, Json, MemoryStore, Reason, SqlStore, Status, StoreError, TaskId, TaskState, Tasks, Timestamp,
    jobs::Jobs,
};

use super::{
    sqlite_store::Folder,
    support::{background, done, ended, hold, in_memory, record},
};

/// Errors with the names of their cases.
struct Errors(Vec<(&'static str, Box<dyn Error>)>);

impl Errors {
    fn add(&mut self, case: &'static str, error: impl Error + 'static) {
        self.0.push((case, Box::new(error)));
    }

    /// Returns the texts, a case to a line. `folder` and this process have names of their own.
    fn texts(&self, folder: &Folder) -> String {
        let folder = folder.file().parent().unwrap().display().to_string();
        let mut texts = String::new();
        for (case, error) in &self.0 {
            writeln!(texts, "{case}: {}", error.to_string().replace(&folder, "/folder")).unwrap();
        }
        texts
    }
}

const ACCEPT_ERRORS: &str = "\
empty name: task not accepted: the name is empty
long name: task not accepted: the name has 201 bytes, at most 200 are allowed
owner: task not accepted: the owner \"a\\nb\" contains control characters
timeout: task not accepted: the timeout of task \"a\" is zero, so it would always time out: omit it for no limit
full background: task not accepted: the background is full
closed background: task not accepted: the background is closed
full store: task not accepted: the task store is full: every stored record belongs to an unfinished task: try again later, or raise the capacity
closed store: task not accepted: the task store is unavailable: the store is closed: open it again
shut down: task not accepted: shutting down
";

#[tokio::test]
async fn errors_of_accepting_say_the_value_and_the_remedy() {
    let (folder, mut errors) = (Folder::new(), Errors(Vec::new()));
    let (tasks, free) = (in_memory(), background());
    let work = |_| done();
    let mut refused = async |case, task: tower_offload_tasks::TrackBuilder<'_>, background: &Background| {
        errors.add(case, task.spawn_blocking(background, work).await.unwrap_err());
    };
    refused("empty name", tasks.track(""), &free).await;
    refused("long name", tasks.track("x".repeat(201)), &free).await;
    refused("owner", tasks.track("a").owner("a\nb"), &free).await;
    refused("timeout", tasks.track("a").timeout(Duration::ZERO), &free).await;
    let one = Background::builder().max_tasks(1).on_failure(|_| ()).build();
    let held = hold(&tasks, &one).await;
    refused("full background", tasks.track("a"), &one).await;
    held.release();
    one.shutdown(super::support::LONG).await;
    refused("closed background", tasks.track("a"), &one).await;
    let small = Tasks::new(MemoryStore::with_capacity(1));
    let held = hold(&small, &free).await;
    refused("full store", small.track("a"), &free).await;
    held.release();
    let store = SqlStore::open(&format!("sqlite:{}", folder.file().display())).await.unwrap();
    let closed = Tasks::new(store.clone());
    closed.start().await.unwrap();
    store.close().await.unwrap();
    refused("closed store", closed.track("a"), &free).await;
    tasks.shutdown(super::support::LONG).await;
    refused("shut down", tasks.track("a"), &free).await;
    assert_eq!(errors.texts(&folder), ACCEPT_ERRORS);
    assert_rules(&errors);
}

const OPEN_ERRORS: &str = "\
no path: the task store failed: the URL has no path after `sqlite:`
in memory: the task store failed: SQLite databases in memory are not supported: use `MemoryStore`
parameter: the task store failed: the parameter `cache` in the URL is not supported: remove it, or use `mode=rw` or `mode=rwc`
scheme: the task store failed: unsupported scheme \"mysql\" in the URL: use `sqlite` or `postgres`, as in `sqlite:tasks.db`
lease: the task store failed: the lease is zero: every process would be judged at once, use seconds
no folder: the task store is unavailable: cannot lock /folder/none/tasks.db.tower-offload.lock: create its directory first: No such file or directory (os error 2)
no file: the task store is unavailable: /folder/other.db does not exist, and `mode=rw` does not create it: use `mode=rwc`
no database: the task store failed: /folder/text: the file is not a database, or it is damaged: restore a backup or choose another file: error returned from database: (code: 26) file is not a database
newer: the task store failed: the schema has version 999, but this version of tower-offload-tasks knows 6: use a newer one
already open: the task store is in use: /folder/tasks.db is in use by this process: clone its `SqlStore`, or close it first
replaced: the task store is unavailable: /folder/tasks.db was replaced by another file: open the store again
no server: the task store is unavailable: 127.0.0.1:1: check the host and the port in the URL, and that the server is running: error communicating with database: Connection refused (os error 111)
URL: the task store failed: the parameter `keepalives` in the URL is not supported: remove it
port: the task store failed: invalid port \"x\" in the URL: use 1 to 65535
";

#[tokio::test]
async fn errors_of_stores_say_the_value_and_the_remedy() {
    let (folder, mut errors) = (Folder::new(), Errors(Vec::new()));
    let file = folder.file().display().to_string();
    let beside = |name| folder.file().with_file_name(name).display().to_string();
    let mut refused = async |case, url: &str| errors.add(case, SqlStore::open(url).await.unwrap_err());
    refused("no path", "sqlite:").await;
    refused("in memory", "sqlite::memory:").await;
    refused("parameter", &format!("sqlite:{file}?cache=shared")).await;
    refused("scheme", "mysql://user:secret@host/db").await;
    let zero = SqlStore::open_with_lease(&format!("sqlite:{file}"), Duration::ZERO).await;
    errors.add("lease", zero.unwrap_err());
    let mut refused = async |case, url: &str| errors.add(case, SqlStore::open(url).await.unwrap_err());
    refused("no folder", &format!("sqlite:{}", beside("none/tasks.db"))).await;
    refused("no file", &format!("sqlite:{}?mode=rw", beside("other.db"))).await;
    fs::write(beside("text"), "x".repeat(5000)).unwrap();
    refused("no database", &format!("sqlite:{}", beside("text"))).await;
    let newer = beside("newer.db");
    SqlStore::open(&format!("sqlite:{newer}")).await.unwrap().close().await.unwrap();
    let mut connection =
        <sqlx::SqliteConnection as sqlx::Connection>::connect(&format!("sqlite:{newer}")).await.unwrap();
    let advance = sqlx::query("INSERT INTO tower_offload_migration (version, applied_at) VALUES (999, 0)");
    advance.execute(&mut connection).await.unwrap();
    drop(connection);
    refused("newer", &format!("sqlite:{newer}")).await;
    let store = SqlStore::open(&format!("sqlite:{file}")).await.unwrap();
    refused("already open", &format!("sqlite:{file}")).await;
    fs::rename(&file, beside("moved.db")).unwrap();
    fs::write(&file, "").unwrap();
    errors.add("replaced", Tasks::new(store).start().await.unwrap_err());
    let mut refused = async |case, url: &str| errors.add(case, SqlStore::open(url).await.unwrap_err());
    refused("no server", "postgres://user:secret@127.0.0.1:1/db").await;
    refused("URL", "postgres://user:secret@host/db?keepalives=1").await;
    refused("port", "postgres://user:secret@host:x/db").await;
    let texts = errors.texts(&folder);
    assert_eq!(texts, OPEN_ERRORS);
    assert!(!texts.contains("secret"));
    assert_rules(&errors);
}

const OTHER_ERRORS: &str = "\
no runtime: the task store is unavailable: no Tokio runtime is available to write records: call it within one
id: invalid task id: expected 36 characters of lower-case base32
state: unknown task state: use one of queued, running, succeeded, failed, cancelled, timed_out, lost
reason: unknown reason: use one of abandoned, not_accepted, response_failed, requested, shutdown, runtime_lost, process_lost, job_deleted
time: invalid timestamp: expected a time such as `2026-03-01T12:30:00.250Z`
large: the JSON text exceeds 65536 bytes
no JSON: invalid JSON: EOF while parsing an object at line 1 column 1
pending: the task has no result yet: it is running
failed: the task has no result: it is failed, see its `error` and `reason`
mismatch: the result of the task cannot be read: the JSON value has another type: invalid type: null, expected u32 at line 1 column 4
";

#[tokio::test]
async fn errors_of_conversions_say_the_value_or_what_is_expected() {
    let (folder, mut errors) = (Folder::new(), Errors(Vec::new()));
    let outside = std::thread::spawn(|| pollster::block_on(in_memory().start()).unwrap_err());
    errors.add("no runtime", outside.join().unwrap());
    errors.add("id", "x".parse::<TaskId>().unwrap_err());
    errors.add("state", "x".parse::<TaskState>().unwrap_err());
    errors.add("reason", "x".parse::<Reason>().unwrap_err());
    errors.add("time", "x".parse::<Timestamp>().unwrap_err());
    errors.add("large", Json::new(&"x".repeat(70_000)).unwrap_err());
    errors.add("no JSON", "{".parse::<Json>().unwrap_err());
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let result = async |id| Status::from(&record(&tasks, id).await).result::<u32>();
    errors.add("pending", result(held.id).await.unwrap_err());
    held.release();
    let failing = |_| Err::<(), _>("no paper");
    let failed = tasks.track("a").spawn_blocking(&background, failing).await.unwrap().id();
    ended(&tasks, failed).await;
    errors.add("failed", result(failed).await.unwrap_err());
    let other = tasks.track("a").spawn_blocking(&background, |_| Ok::<_, Infallible>(())).await.unwrap().id();
    ended(&tasks, other).await;
    errors.add("mismatch", result(other).await.unwrap_err());
    assert_eq!(errors.texts(&folder), OTHER_ERRORS);
    assert_rules(&errors);
}

/// Checks that no error repeats its source, and that the debug form, which a `main` that returns
/// the error prints, has the text of a store's error too.
fn assert_rules(errors: &Errors) {
    for (case, error) in &errors.0 {
        let (text, debug) = (error.to_string(), format!("{error:?}"));
        assert!(
            !text.ends_with('.') && text.starts_with(|first: char| !first.is_uppercase() || text.starts_with("SQ"))
        );
        // The errors of sqlx repeat that of the database, at the end.
        let source = error.source().map(ToString::to_string).filter(|source| !text.ends_with(source.as_str()));
        assert!(source.is_none_or(|source| !text.contains(&source)), "{case}: {text}");
        let of_store = error.downcast_ref::<AcceptError>().and_then(AcceptError::store_error);
        if let Some(store) = of_store.or(error.downcast_ref::<StoreError>()) {
            assert!(text.ends_with(&store.get_ref().to_string()), "{case}: {text}");
            let words = store.get_ref().to_string().replace(['"', '\\'], "");
            let first = words.split(": error").next().unwrap().to_owned();
            assert!(debug.replace(['"', '\\'], "").contains(&first), "{case}: {debug}");
        }
    }
}

/// A `main` that returns `io::Result<()>` can use `?`.
#[tokio::test]
async fn errors_of_a_main_convert_to_io_errors() {
    async fn open(url: &str) -> std::io::Result<SqlStore> {
        Ok(SqlStore::open(url).await?)
    }
    let error = open("mysql://host").await.unwrap_err();
    assert!(error.to_string().contains("unsupported scheme") && error.get_ref().unwrap().is::<StoreError>());
    let not_started = Jobs::builder(&in_memory()).start().await.unwrap_err();
    assert!(std::io::Error::from(not_started).to_string().contains("SqlStore"));
    let refused = in_memory().track("").spawn_blocking(&background(), |_| done()).await.unwrap_err();
    assert!(refused.is_invalid() && std::io::Error::from(refused).to_string().contains("the name is empty"));
    let parsed = "1".parse::<Json>().unwrap().parse::<String>().unwrap_err();
    assert_eq!(std::io::Error::from(parsed).kind(), std::io::ErrorKind::InvalidData);
}
