//! A River client that knows nothing of this crate: it stands in for a worker in another language.

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

use super::support::{LONG, Place, SHORT};

/// The same JSON on both sides.
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

/// What an attempt does, once the test says so.
pub(crate) enum Answer {
    Cancel,
    Complete(Value),
    Fail(&'static str),
    Snooze,
}

/// Works jobs of the kind `report` as it is told. With the last of it the client is gone, as if killed.
pub(crate) struct Stranger {
    pub(crate) client: Client,
    answers: mpsc::UnboundedSender<Answer>,
    run: RunHandle,
}

impl Stranger {
    pub(crate) async fn start(place: &Place) -> Self {
        Self::start_with(builder(place).await.without_job_timeout())
    }

    pub(crate) fn start_with(builder: ClientBuilder) -> Self {
        let (answers, asked) = mpsc::unbounded_channel();
        let mut workers = Workers::new();
        workers.add::<Report, _>(Reporter { asked: Arc::new(Mutex::new(asked)) }).unwrap();
        let client = builder.workers(workers).queue("default", QueueConfig::new(1)).build().unwrap();
        let run = client.start().unwrap();
        Self { client, answers, run }
    }

    pub(crate) fn answer(&self, answer: Answer) {
        self.answers.send(answer).unwrap();
    }

    pub(crate) async fn stop(mut self) {
        self.run.stop_and_cancel().await.unwrap();
    }
}

struct Reporter {
    asked: Arc<Mutex<mpsc::UnboundedReceiver<Answer>>>,
}

impl Worker<Report> for Reporter {
    type Error = Box<dyn std::error::Error + Send + Sync>;

    async fn work(&self, context: WorkContext, _: riverqueue::Job<Report>) -> Result<WorkOutcome, Self::Error> {
        let answer = async { self.asked.lock().await.recv().await };
        let answer = tokio::select! {
            answer = answer => answer,
            () = context.cancellation_token().cancelled() => None,
        };
        match answer {
            Some(Answer::Complete(output)) => {
                context.record_output(output)?;
                Ok(WorkOutcome::Complete)
            }
            Some(Answer::Cancel) => Ok(WorkOutcome::Cancel),
            Some(Answer::Fail(message)) => Err(message.into()),
            Some(Answer::Snooze) => Ok(WorkOutcome::Snooze(HOUR)),
            None => Err("cancelled".into()),
        }
    }
}

/// Far beyond the end of a test: what waits so long waits until somebody asks for it.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(20);

struct InAnHour;

impl RetryPolicy for InAnHour {
    fn next_retry(&self, _: &JobRow, _: &WorkError, _: Timestamp) -> Duration {
        HOUR
    }
}

pub(crate) async fn builder(place: &Place) -> ClientBuilder {
    let builder = match place {
        Place::File(file) => Client::builder(SqlitePoolOptions::new().connect(&file.url()).await.unwrap()),
        Place::Server(server) => Client::builder(PgPoolOptions::new().connect(&server.url()).await.unwrap()),
    };
    builder.retry_policy(InAnHour)
}

/// Leads, looks for stuck jobs all the time, and thinks so of all that run for an hour, as River does.
pub(crate) fn eager(builder: ClientBuilder) -> ClientBuilder {
    let maintenance = MaintenanceConfig::default().with_rescuer_interval(OFTEN).with_elect_interval(OFTEN);
    builder.maintenance(maintenance.with_rescue_after(HOUR))
}

/// Returns when a query counts something.
pub(crate) async fn there_is(place: &Place, query: &str) {
    let look = async {
        while place.number(query).await == 0 {
            tokio::time::sleep(SHORT).await;
        }
    };
    tokio::time::timeout(LONG, look).await.expect(query);
}
