//! Jobs that River's leader rescues, or must not rescue.

use std::sync::Arc;

use riverqueue::{Client, ClientBuilder};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Notify;
use tower_offload_tasks::{Failure, Record, SqlStore, TaskId, TaskState, Tasks, jobs::Jobs};

use super::{
    other_client::{OtherClient, Report, builder, eager, wait_for_count},
    other_languages::without_workers,
    support::{Act, LONG, SHORT, TestDatabase, TestWorkers, ended, on_each_database, record, until},
};
use crate::databases::{OnFile, OnServer};

on_each_database! {
    stuck_job_of_a_kind_unknown_to_the_leader_is_discarded
    stuck_job_of_a_kind_known_to_the_leader_is_retried
}

const RESCUED: &str = "Stuck job rescued by JobRescuer";

/// Changes all jobs as if they had been running for two hours.
async fn age(database: &TestDatabase) {
    database
        .execute(match database {
            TestDatabase::Sqlite(_) => {
                "UPDATE river_job SET attempted_at = strftime('%Y-%m-%d %H:%M:%f', 'now', '-2 hours')"
            }
            TestDatabase::Postgres(_) => {
                "UPDATE river_job SET attempted_at = coalesce(attempted_at, now()) - interval '2 hours'"
            }
        })
        .await;
}

/// Changes all jobs as if a process with another client had crashed while running them.
async fn abandon(database: &TestDatabase) {
    let by = match database {
        TestDatabase::Sqlite(_) => "jsonb('[\"gone\"]')",
        TestDatabase::Postgres(_) => "'{gone}'",
    };
    database.execute(&format!("UPDATE river_job SET state = 'running', attempt = 1, attempted_by = {by}")).await;
    age(database).await;
}

async fn stuck_job_of_a_kind_unknown_to_the_leader_is_discarded(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Act::Hold).await.unwrap().id();
    abandon(&database).await;
    let leader = OtherClient::start_with(eager(builder(&database).await));
    let discarded = ended(&tasks, id).await;
    assert_eq!((discarded.state, discarded.attempt, discarded.max_attempts), (TaskState::Failed, 1, 3));
    assert_eq!(discarded.failure.unwrap().message, RESCUED);
    leader.stop().await;
}

async fn stuck_job_of_a_kind_known_to_the_leader_is_retried(database: TestDatabase) {
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    abandon(&database).await;
    let leader = OtherClient::start_with(eager(builder(&database).await));
    let rescued = until(&tasks, id, |record| record.state != TaskState::Running).await;
    assert_eq!((rescued.state, rescued.attempt), (TaskState::Queued, 1));
    assert_eq!(rescued.failure.unwrap().message, RESCUED);
    leader.stop().await;
}

/// A job that a process of this crate is running, for two hours according to the database.
struct HeldJob {
    database: TestDatabase,
    tasks: Tasks,
    jobs: Jobs,
    id: TaskId,
    release: Arc<Notify>,
}

impl HeldJob {
    /// The leader starts first. The job has a queue of its own, so that the leader does not claim
    /// it.
    async fn start_with_leader(leader: ClientBuilder, database: TestDatabase) -> (Self, OtherClient) {
        drop(without_workers(&database).await); // creates the tables
        let leader = OtherClient::start_with(eager(leader));
        wait_for_count(&database, "SELECT count(*) FROM river_leader").await;
        let tasks = database.tasks().await;
        let (started, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, released) = (started.clone(), release.clone());
        let work = move |_: Report, _| {
            let (begins, released) = (begins.clone(), released.clone());
            async move {
                begins.notify_one();
                released.notified().await;
                Ok::<_, Failure>("released")
            }
        };
        let jobs = Jobs::builder(&tasks).queue("own", 1).worker(LONG, work).start().await.unwrap();
        let id = jobs.enqueue(Report { customer: 7 }).queue("own").await.unwrap().id();
        started.notified().await;
        age(&database).await;
        (Self { database, tasks, jobs, id, release }, leader)
    }

    /// Returns the record after the leader has rescued another stuck job. It handles all stuck jobs
    /// in one statement.
    async fn after_rescue(&self) -> Record {
        let bait = "INSERT INTO river_job (kind, queue, args, max_attempts, state, attempt, attempted_at, attempted_by)
            VALUES ('bait', 'other', '{}', 3, 'running', 1, now() - interval '2 hours', '{gone}')";
        self.database.execute(bait).await;
        wait_for_count(&self.database, "SELECT count(*) FROM river_job WHERE kind = 'bait' AND state <> 'running'")
            .await;
        record(&self.tasks, self.id).await
    }

    async fn assert_not_rescued(self, leader: OtherClient) {
        let record = self.after_rescue().await;
        assert_eq!((record.state, record.attempt, record.failure), (TaskState::Running, 1, None));
        // The end belongs to the claim of that time.
        self.database.execute("UPDATE river_job SET attempted_at = attempted_at + interval '2 hours'").await;
        self.release.notify_one();
        let ended = ended(&self.tasks, self.id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
        assert!(self.jobs.shutdown(LONG).await.is_clean());
        leader.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_leader_without_a_timeout_does_not_rescue() {
    let Some(database) = OnServer::fresh().await.map(TestDatabase::Postgres) else { return };
    let (held, leader) = HeldJob::start_with_leader(builder(&database).await.without_job_timeout(), database).await;
    held.assert_not_rescued(leader).await;
}

/// The fence prevents the rescue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_of_this_crate_does_not_rescue() {
    let Some(server) = OnServer::fresh().await else { return };
    let pool = PgPoolOptions::new().after_connect(|connection, _| {
        let name = sqlx::query("SELECT set_config('tower_offload.client', 'to-another', false)");
        Box::pin(async move { name.execute(connection).await.map(drop) })
    });
    let leader = Client::builder(pool.connect(&server.url()).await.unwrap()).id("to-another");
    let (held, leader) = HeldJob::start_with_leader(leader, TestDatabase::Postgres(server)).await;
    held.assert_not_rescued(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_leader_with_a_timeout_does_not_rescue() {
    let Some(database) = OnServer::fresh().await.map(TestDatabase::Postgres) else { return };
    let (held, leader) = HeldJob::start_with_leader(builder(&database).await, database).await;
    held.assert_not_rescued(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_leader_that_does_not_know_the_kind_does_not_rescue() {
    let Some(database) = OnServer::fresh().await.map(TestDatabase::Postgres) else { return };
    let (held, leader) = HeldJob::start_with_leader(builder(&database).await, database).await;
    held.database.execute("UPDATE river_job SET kind = 'unknown'").await;
    held.assert_not_rescued(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_of_this_crate_retries_stuck_jobs_of_other_clients() {
    let Some(database) = OnServer::fresh().await.map(TestDatabase::Postgres) else { return };
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    abandon(&database).await;
    let leader = TestWorkers::new().start(&database.tasks().await).await;
    let rescued = until(&tasks, id, |record| record.state != TaskState::Running).await;
    assert_eq!((rescued.state, rescued.attempt), (TaskState::Queued, 1));
    assert_eq!(rescued.failure.unwrap().message, RESCUED);
    assert!(leader.shutdown(LONG).await.is_clean());
}

/// Opens the file as soon as it is unlocked. The last task of its earlier user releases the lock.
async fn reopen(database: &TestDatabase) -> Tasks {
    let open = async {
        loop {
            match SqlStore::open(&database.url()).await {
                Ok(store) => return Tasks::new(store),
                Err(_) => tokio::time::sleep(SHORT).await,
            }
        }
    };
    tokio::time::timeout(LONG, open).await.expect("the file is still locked")
}

/// The process that locks the file assumes that no other process works on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_on_sqlite_recovers_running_jobs_of_other_clients() {
    let database = TestDatabase::Sqlite(OnFile::fresh());
    let (tasks, jobs) = without_workers(&database).await;
    let id = jobs.enqueue(Report { customer: 7 }).await.unwrap().id();
    let other = OtherClient::start(&database).await;
    until(&tasks, id, |record| record.state == TaskState::Running).await;
    assert!(jobs.shutdown(LONG).await.is_clean() && tasks.shutdown(LONG).await.is_clean());
    drop((tasks, jobs));
    let tasks = reopen(&database).await;
    let _jobs = Jobs::builder(&tasks).start().await.unwrap();
    let recovered = record(&tasks, id).await;
    assert_eq!(
        (recovered.state, recovered.attempt, &*recovered.failure.unwrap().class),
        (TaskState::Queued, 1, "process_lost")
    );
    other.stop().await;
}
