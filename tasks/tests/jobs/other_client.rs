//! A River client without this crate. It represents a worker in another language.

use std::{sync::Arc, time::Duration};

use riverqueue::{
    Client, ClientBuilder, JobArgs, JobRow, MaintenanceConfig, QueueConfig, RetryPolicy, RunHandle, WorkContext,
    WorkError, WorkOutcome, Worker, Workers, jiff::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use tokio::sync::{Mutex, mpsc};
use tower_offload_tasks::jobs::Job;
use tower_offload_tests::eventually;

use super::support::TestDatabase;

/// Has the same JSON on both sides.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Report {
    pub(crate) customer: u64,
}

impl Job for Report {
    const KIND: &'static str = "report";
    const MAX_ATTEMPTS: u16 = 2;
}

impl JobArgs for Report {
    const KIND: &'static str = "report";
}

/// Result of an attempt, chosen by the test.
pub(crate) enum Outcome {
    Cancel,
    Complete(Value),
    Fail(&'static str),
    Snooze,
}

/// Works jobs of kind `report`. Each attempt waits for its [`Outcome`]. Dropping the client has the
/// effect of a crash.
pub(crate) struct OtherClient {
    pub(crate) client: Client,
    outcomes: mpsc::UnboundedSender<Outcome>,
    run: RunHandle,
}

impl OtherClient {
    pub(crate) async fn start(database: &TestDatabase) -> Self {
        Self::start_with(builder(database).await.without_job_timeout())
    }

    pub(crate) fn start_with(builder: ClientBuilder) -> Self {
        let (outcomes, receiver) = mpsc::unbounded_channel();
        let mut workers = Workers::new();
        workers.add::<Report, _>(Reporter { outcomes: Arc::new(Mutex::new(receiver)) }).unwrap();
        let client = builder.workers(workers).queue("default", QueueConfig::new(1)).build().unwrap();
        let run = client.start().unwrap();
        Self { client, outcomes, run }
    }

    pub(crate) fn finish(&self, outcome: Outcome) {
        self.outcomes.send(outcome).unwrap();
    }

    pub(crate) async fn stop(mut self) {
        self.run.stop_and_cancel().await.unwrap();
    }
}

struct Reporter {
    outcomes: Arc<Mutex<mpsc::UnboundedReceiver<Outcome>>>,
}

impl Worker<Report> for Reporter {
    type Error = Box<dyn std::error::Error + Send + Sync>;

    async fn work(&self, context: WorkContext, _: riverqueue::Job<Report>) -> Result<WorkOutcome, Self::Error> {
        let outcome = async { self.outcomes.lock().await.recv().await };
        let outcome = tokio::select! {
            outcome = outcome => outcome,
            () = context.cancellation_token().cancelled() => None,
        };
        match outcome {
            Some(Outcome::Complete(output)) => {
                context.record_output(output)?;
                Ok(WorkOutcome::Complete)
            }
            Some(Outcome::Cancel) => Ok(WorkOutcome::Cancel),
            Some(Outcome::Fail(message)) => Err(message.into()),
            Some(Outcome::Snooze) => Ok(WorkOutcome::Snooze(HOUR)),
            None => Err("cancelled".into()),
        }
    }
}

/// A timeout that no test reaches.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(20);

struct RetryInAnHour;

impl RetryPolicy for RetryInAnHour {
    fn next_retry(&self, _: &JobRow, _: &WorkError, _: Timestamp) -> Duration {
        HOUR
    }
}

pub(crate) async fn builder(database: &TestDatabase) -> ClientBuilder {
    let builder = match database {
        TestDatabase::Sqlite(file) => Client::builder(SqlitePoolOptions::new().connect(&file.url()).await.unwrap()),
        TestDatabase::Postgres(server) => Client::builder(PgPoolOptions::new().connect(&server.url()).await.unwrap()),
    };
    builder.retry_policy(RetryInAnHour)
}

/// Becomes the leader quickly, and looks for stuck jobs continuously. Jobs are stuck after an hour,
/// like by default.
pub(crate) fn eager(builder: ClientBuilder) -> ClientBuilder {
    let maintenance = MaintenanceConfig::default()
        .with_rescuer_interval(MAINTENANCE_INTERVAL)
        .with_elect_interval(MAINTENANCE_INTERVAL);
    builder.maintenance(maintenance.with_rescue_after(HOUR))
}

/// Waits until the result of a query is greater than zero.
pub(crate) async fn wait_for_count(database: &TestDatabase, query: &str) {
    eventually(query, async || database.number(query).await > 0).await;
}
