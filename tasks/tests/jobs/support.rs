//! Databases of either kind, and jobs that tests control.

use std::{
    future,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::Connection;
use tokio::sync::Notify;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    Failure, Progress, Record, SqlStore, TaskId, Tasks,
    jobs::{Backoff, Job, Jobs, JobsBuilder, StartError},
};
use tower_offload_tests::{PATIENCE, eventually};

use super::databases::{OnFile, OnServer};

/// A timeout that no passing test reaches.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const SHORT: Duration = Duration::from_millis(20);
/// Time that a test waits before it asserts that something has not happened, for which there is no
/// event. A slow machine can hide a fault, but cannot make a correct program fail.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);
/// Timeout of a shutdown that has to requeue running jobs. They are stopped a second before it has
/// passed, or a fifth of a shorter one, and the database is written within that time.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// A limit for what a queue does when it starts, because the next time is a minute later.
pub(crate) const BEFORE_THE_NEXT_AUDIT: Duration = Duration::from_secs(40);

pub(crate) enum TestDatabase {
    Sqlite(OnFile),
    Postgres(OnServer),
}

impl TestDatabase {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(file) => file.url(),
            Self::Postgres(server) => server.url(),
        }
    }

    /// Opens the store, like a process when it starts.
    pub(crate) async fn tasks(&self) -> Tasks {
        Tasks::new(SqlStore::open(&self.url()).await.unwrap())
    }

    /// Executes a statement that no API executes.
    pub(crate) async fn execute(&self, statement: &str) -> u64 {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        match self {
            Self::Sqlite(file) => {
                let mut connection = file.connect().await;
                let affected = sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected();
                connection.close().await.unwrap();
                affected
            }
            Self::Postgres(server) => {
                sqlx::query(statement).execute(&mut server.connect().await).await.unwrap().rows_affected()
            }
        }
    }

    pub(crate) async fn number(&self, query: &str) -> i64 {
        let query = sqlx::AssertSqlSafe(query.to_owned());
        match self {
            Self::Sqlite(file) => sqlx::query_scalar(query).fetch_one(&mut file.connect().await).await.unwrap(),
            Self::Postgres(server) => sqlx::query_scalar(query).fetch_one(&mut server.connect().await).await.unwrap(),
        }
    }
}

/// Generates a test for each kind of database from each function.
macro_rules! on_each_database {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::TestDatabase::Sqlite($crate::databases::OnFile::fresh())).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(server) = $crate::databases::OnServer::fresh().await else { return };
                super::$name($crate::support::TestDatabase::Postgres(server)).await;
            })*
        }
    };
}
pub(crate) use on_each_database;

/// A job that does what its arguments say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Act {
    Fail,
    Hold,
    Panic,
    Return(serde_json::Value),
    UntilCancelled,
}

impl Job for Act {
    const KIND: &'static str = "act";
    const MAX_ATTEMPTS: u16 = 3;
}

/// Like [`Act`], but with a worker that runs a future.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ActAsync(pub(crate) Act);

impl Job for ActAsync {
    const KIND: &'static str = "act-async";
    const QUEUE: &'static str = "futures";
    const MAX_ATTEMPTS: u16 = 3;
}

/// State shared by the workers of a test.
#[derive(Clone)]
pub(crate) struct TestWorkers {
    pub(crate) started: Arc<Mutex<Vec<TaskId>>>,
    changed: Arc<Notify>,
    release: Arc<Mutex<Option<mpsc::Sender<()>>>>,
    held: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl TestWorkers {
    pub(crate) fn new() -> Self {
        let (release, held) = mpsc::channel();
        let (release, held) = (Arc::new(Mutex::new(Some(release))), Arc::new(Mutex::new(held)));
        Self { started: Arc::default(), changed: Arc::default(), release, held }
    }

    /// Waits until this number of attempts have started.
    pub(crate) async fn started(&self, attempts: usize) {
        loop {
            let changed = self.changed.notified();
            if self.started.lock().unwrap().len() >= attempts {
                return;
            }
            changed.await;
        }
    }

    /// Releases all attempts that are held, now and later.
    pub(crate) fn release(&self) {
        drop(self.release.lock().unwrap().take());
    }

    fn on_start(&self, progress: &Progress) {
        self.started.lock().unwrap().push(progress.id());
        self.changed.notify_waiters();
    }

    pub(crate) fn act(&self, act: Act, progress: &Progress) -> Result<serde_json::Value, Failure> {
        self.on_start(progress);
        match act {
            Act::Fail => Err(Failure::new("out_of_paper", "there is no paper").detail(&7)),
            Act::Hold => self.hold(),
            Act::Panic => panic!("as requested"),
            Act::Return(value) => Ok(value),
            Act::UntilCancelled => {
                while !progress.is_cancelled() {
                    // A closure gets no notification.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Failure::new("cancelled", "as requested"))
            }
        }
    }

    /// Blocks until the attempts are released.
    pub(crate) fn hold(&self) -> Result<serde_json::Value, Failure> {
        let _ = self.held.lock().unwrap().recv();
        Ok("released".into())
    }

    pub(crate) async fn act_async(&self, act: Act, progress: Progress) -> Result<serde_json::Value, Failure> {
        match act {
            Act::Hold => {
                self.on_start(&progress);
                future::pending().await
            }
            act => self.act(act, &progress),
        }
    }

    /// Returns a builder with workers for both kinds of jobs. Failed jobs are retried at once.
    pub(crate) fn builder(&self, tasks: &Tasks) -> JobsBuilder {
        let pool = ThreadPool::blocking(4);
        let (blocking, futures) = (self.clone(), self.clone());
        Jobs::builder(tasks)
            .backoff(Backoff::fixed(Duration::ZERO))
            .blocking_worker(pool, LONG, move |act: Act, progress| blocking.act(act, &progress))
            .worker(LONG, move |ActAsync(act), progress| {
                let futures = futures.clone();
                async move { futures.act_async(act, progress.into()).await }
            })
    }

    pub(crate) async fn start(&self, tasks: &Tasks) -> Jobs {
        self.builder(tasks).start().await.unwrap()
    }
}

/// Starts a queue as soon as the previous one of the store has ended, which is shortly after its
/// last handle was dropped.
pub(crate) async fn start_when_free(builder: impl Fn() -> JobsBuilder) -> Result<Jobs, StartError> {
    let mut started = None;
    eventually("the previous queue has ended", async || {
        started = Some(builder().start().await);
        !matches!(&started, Some(Err(error)) if error.is_invalid())
    })
    .await;
    started.unwrap()
}

pub(crate) async fn record(tasks: &Tasks, id: TaskId) -> Record {
    tasks.get(id).await.unwrap().into_record().expect("the task is unknown")
}

/// Waits until the record satisfies a condition, and returns it.
pub(crate) async fn until(tasks: &Tasks, id: TaskId, wanted: impl Fn(&Record) -> bool) -> Record {
    let mut last = record(tasks, id).await;
    let poll = async {
        while !wanted(&last) {
            tokio::time::sleep(SHORT).await;
            last = record(tasks, id).await;
        }
    };
    let satisfied = tokio::time::timeout(PATIENCE, poll).await.is_ok();
    assert!(satisfied, "timed out with {last:?}");
    last
}

/// Waits until the job has finished, and returns its record.
pub(crate) async fn ended(tasks: &Tasks, id: TaskId) -> Record {
    until(tasks, id, |record| record.state.is_final()).await
}

/// Opens the store as soon as the process that has used it has closed it, which is shortly after
/// its shutdown.
#[cfg(target_os = "linux")]
pub(crate) async fn tasks_when_free(url: &str) -> Tasks {
    let mut opened = None;
    eventually("the store is free", async || {
        opened = Some(SqlStore::open_with_lease(url, Duration::from_millis(900)).await);
        !matches!(&opened, Some(Err(error)) if error.is_locked())
    })
    .await;
    Tasks::new(opened.unwrap().unwrap())
}

/// Kills this process with SIGKILL.
#[cfg(target_os = "linux")]
pub(crate) fn kill_this_process() {
    let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    std::thread::sleep(LONG);
}
