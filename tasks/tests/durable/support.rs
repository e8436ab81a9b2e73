//! A database of either kind, jobs that do what they say, and latches to hold them.

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
    jobs::{Backoff, Builder, Durable, Job},
};

use super::databases::{OnFile, OnServer};

/// Longer than any test takes that passes.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const SHORT: Duration = Duration::from_millis(20);

pub(crate) enum Place {
    File(OnFile),
    Server(OnServer),
}

impl Place {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::File(file) => file.url(),
            Self::Server(server) => server.url(),
        }
    }

    /// As a process does when it starts.
    pub(crate) async fn tasks(&self) -> Tasks {
        Tasks::new(SqlStore::open(&self.url()).await.unwrap())
    }

    /// What no API does, by hand.
    pub(crate) async fn execute(&self, statement: &str) -> u64 {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        match self {
            Self::File(file) => {
                let mut connection = file.connect().await;
                let affected = sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected();
                connection.close().await.unwrap();
                affected
            }
            Self::Server(server) => {
                sqlx::query(statement).execute(&mut server.connect().await).await.unwrap().rows_affected()
            }
        }
    }

    pub(crate) async fn number(&self, query: &str) -> i64 {
        let query = sqlx::AssertSqlSafe(query.to_owned());
        match self {
            Self::File(file) => sqlx::query_scalar(query).fetch_one(&mut file.connect().await).await.unwrap(),
            Self::Server(server) => sqlx::query_scalar(query).fetch_one(&mut server.connect().await).await.unwrap(),
        }
    }
}

/// Makes a test on each kind of database of each function.
macro_rules! on_each_database {
    ($($name:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::Place::File($crate::databases::OnFile::fresh())).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(server) = $crate::databases::OnServer::fresh().await else { return };
                super::$name($crate::support::Place::Server(server)).await;
            })*
        }
    };
}
pub(crate) use on_each_database;

/// Does what it says.
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

/// The same, for an async worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ActAsync(pub(crate) Act);

impl Job for ActAsync {
    const KIND: &'static str = "act-async";
    const QUEUE: &'static str = "others";
    const MAX_ATTEMPTS: u16 = 3;
}

/// What the workers of a test have in common.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) begun: Arc<Mutex<Vec<TaskId>>>,
    changed: Arc<Notify>,
    release: Arc<Mutex<Option<mpsc::Sender<()>>>>,
    held: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let (release, held) = mpsc::channel();
        let (release, held) = (Arc::new(Mutex::new(Some(release))), Arc::new(Mutex::new(held)));
        Self { begun: Arc::default(), changed: Arc::default(), release, held }
    }

    /// Returns when so many attempts have begun.
    pub(crate) async fn begun(&self, attempts: usize) {
        loop {
            let changed = self.changed.notified();
            if self.begun.lock().unwrap().len() >= attempts {
                return;
            }
            changed.await;
        }
    }

    /// Lets all go on that are held, now and later.
    pub(crate) fn release(&self) {
        drop(self.release.lock().unwrap().take());
    }

    fn begins(&self, progress: &Progress) {
        self.begun.lock().unwrap().push(progress.id());
        self.changed.notify_waiters();
    }

    pub(crate) fn act(&self, act: Act, progress: &Progress) -> Result<serde_json::Value, Failure> {
        self.begins(progress);
        match act {
            Act::Fail => Err(Failure::new("out_of_paper", "there is no paper").detail(&7)),
            Act::Hold => {
                let _ = self.held.lock().unwrap().recv();
                Ok("released".into())
            }
            Act::Panic => panic!("told to"),
            Act::Return(value) => Ok(value),
            Act::UntilCancelled => {
                while !progress.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Failure::new("cancelled", "as was asked"))
            }
        }
    }

    pub(crate) async fn act_async(&self, act: Act, progress: Progress) -> Result<serde_json::Value, Failure> {
        match act {
            Act::Hold => {
                self.begins(&progress);
                future::pending().await
            }
            act => self.act(act, &progress),
        }
    }

    /// Workers for both kinds of jobs, and retries at once.
    pub(crate) fn builder(&self, tasks: &Tasks) -> Builder {
        let pool = ThreadPool::blocking(4);
        let (stage, of_async) = (self.clone(), self.clone());
        Durable::builder(tasks)
            .backoff(Backoff::fixed(Duration::ZERO))
            .sync_worker(pool, LONG, move |act: Act, progress| stage.act(act, &progress))
            .async_worker(LONG, move |ActAsync(act), progress| {
                let stage = of_async.clone();
                async move { stage.act_async(act, progress).await }
            })
    }

    pub(crate) async fn start(&self, tasks: &Tasks) -> Durable {
        self.builder(tasks).start().await.unwrap()
    }
}

pub(crate) async fn record(tasks: &Tasks, id: TaskId) -> Record {
    tasks.get(id).await.unwrap().into_record().expect("there is such a task")
}

/// The record once it is as it should be.
pub(crate) async fn until(tasks: &Tasks, id: TaskId, wanted: impl Fn(&Record) -> bool) -> Record {
    let look = async {
        loop {
            let record = record(tasks, id).await;
            if wanted(&record) {
                return record;
            }
            tokio::time::sleep(SHORT).await;
        }
    };
    match tokio::time::timeout(LONG, look).await {
        Ok(record) => record,
        Err(_) => panic!("it has become {:?}", record(tasks, id).await),
    }
}

/// The record when the job is over.
pub(crate) async fn ended(tasks: &Tasks, id: TaskId) -> Record {
    until(tasks, id, |record| record.state.is_final()).await
}
