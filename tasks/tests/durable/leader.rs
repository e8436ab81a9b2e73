//! River's leader, which one client of the database is, takes care of jobs that run for an hour: what it does to whose.

use std::sync::Arc;

use riverqueue::{Client, ClientBuilder};
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Notify;
use tower_offload_tasks::{Failure, Record, SqlStore, TaskId, TaskState, Tasks, jobs::Durable};

use super::{
    elsewhere::without_workers,
    stranger::{Report, Stranger, builder, eager, there_is},
    support::{Act, LONG, Place, SHORT, Stage, ended, on_each_database, record, until},
};
use crate::databases::{OnFile, OnServer};

on_each_database! {
    a_stuck_job_of_a_kind_that_the_leader_does_not_know_is_discarded
    a_stuck_job_of_a_kind_that_the_leader_knows_is_tried_again
}

const RESCUED: &str = "Stuck job rescued by JobRescuer";

/// Makes all jobs look as if they had been running for two hours.
async fn age(place: &Place) {
    place
        .execute(match place {
            Place::File(_) => "UPDATE river_job SET attempted_at = strftime('%Y-%m-%d %H:%M:%f', 'now', '-2 hours')",
            Place::Server(_) => "UPDATE river_job SET attempted_at = now() - interval '2 hours'",
        })
        .await;
}

/// A job in another language whose process is gone.
async fn strand(place: &Place) {
    let by = match place {
        Place::File(_) => "jsonb('[\"gone\"]')",
        Place::Server(_) => "'{gone}'",
    };
    place.execute(&format!("UPDATE river_job SET state = 'running', attempt = 1, attempted_by = {by}")).await;
    age(place).await;
}

async fn a_stuck_job_of_a_kind_that_the_leader_does_not_know_is_discarded(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Act::Hold).await.unwrap().id();
    strand(&place).await;
    let leader = Stranger::start_with(eager(builder(&place).await));
    let discarded = ended(&tasks, id).await;
    assert_eq!((discarded.state, discarded.attempt, discarded.max_attempts), (TaskState::Failed, 1, 3));
    assert_eq!(discarded.failure.unwrap().message, RESCUED);
    leader.stop().await;
}

async fn a_stuck_job_of_a_kind_that_the_leader_knows_is_tried_again(place: Place) {
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    strand(&place).await;
    let leader = Stranger::start_with(eager(builder(&place).await));
    let rescued = until(&tasks, id, |record| record.state != TaskState::Running).await;
    assert_eq!((rescued.state, rescued.attempt), (TaskState::Queued, 1));
    assert_eq!(rescued.failure.unwrap().message, RESCUED);
    leader.stop().await;
}

/// A job that a living process of ours runs, and has been running for two hours by the database's account.
struct Held {
    place: Place,
    tasks: Tasks,
    durable: Durable,
    id: TaskId,
    release: Arc<Notify>,
}

impl Held {
    /// In a queue of its own: the leader, which is there before, must not take it.
    async fn beside(leader: ClientBuilder, place: Place) -> (Self, Stranger) {
        without_workers(&place).await; // makes the tables
        let leader = Stranger::start_with(eager(leader));
        there_is(&place, "SELECT count(*) FROM river_leader").await;
        let tasks = place.tasks().await;
        let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, released) = (begun.clone(), release.clone());
        let work = move |_: Report, _| {
            let (begins, released) = (begins.clone(), released.clone());
            async move {
                begins.notify_one();
                released.notified().await;
                Ok::<_, Failure>("released")
            }
        };
        let durable = Durable::builder(&tasks).queue("ours", 1).async_worker(LONG, work).start().await.unwrap();
        let id = durable.enqueue(Report { customer: 7 }).queue("ours").await.unwrap().id();
        begun.notified().await;
        age(&place).await;
        (Self { place, tasks, durable, id, release }, leader)
    }

    /// What it is once the leader has looked at all stuck jobs, which it does in one statement.
    async fn seen_by_the_leader(&self) -> Record {
        let bait = "INSERT INTO river_job (kind, queue, args, max_attempts, state, attempt, attempted_at, attempted_by)
            VALUES ('bait', 'nobodys', '{}', 3, 'running', 1, now() - interval '2 hours', '{gone}')";
        self.place.execute(bait).await;
        there_is(&self.place, "SELECT count(*) FROM river_job WHERE kind = 'bait' AND state <> 'running'").await;
        record(&self.tasks, self.id).await
    }

    async fn goes_on(self, leader: Stranger) {
        let seen = self.seen_by_the_leader().await;
        assert_eq!((seen.state, seen.attempt, seen.failure), (TaskState::Running, 1, None));
        self.release.notify_one();
        let ended = ended(&self.tasks, self.id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
        assert!(self.durable.drain(LONG).await.is_clean());
        leader.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_elsewhere_that_knows_the_kind_and_sets_no_timeout_leaves_a_running_job_alone() {
    let Some(place) = OnServer::fresh().await.map(Place::Server) else { return };
    let (held, leader) = Held::beside(builder(&place).await.without_job_timeout(), place).await;
    held.goes_on(leader).await;
}

/// Whatever it thinks of the kind: the fence holds it off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_ours_leaves_a_running_job_of_another_process_of_ours_alone() {
    let Some(server) = OnServer::fresh().await else { return };
    let pool = PgPoolOptions::new().after_connect(|connection, _| {
        let name = sqlx::query("SELECT set_config('tower_offload.client', 'to-another', false)");
        Box::pin(async move { name.execute(connection).await.map(drop) })
    });
    let leader = Client::builder(pool.connect(&server.url()).await.unwrap()).id("to-another");
    let (held, leader) = Held::beside(leader, Place::Server(server)).await;
    held.goes_on(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_elsewhere_with_a_timeout_leaves_a_running_job_alone() {
    let Some(place) = OnServer::fresh().await.map(Place::Server) else { return };
    let (held, leader) = Held::beside(builder(&place).await, place).await;
    held.goes_on(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_elsewhere_that_does_not_know_the_kind_leaves_a_running_job_alone() {
    let Some(place) = OnServer::fresh().await.map(Place::Server) else { return };
    let (held, leader) = Held::beside(builder(&place).await, place).await;
    held.place.execute("UPDATE river_job SET kind = 'unknown'").await;
    held.goes_on(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_ours_has_a_stuck_job_of_another_language_tried_again() {
    let Some(place) = OnServer::fresh().await.map(Place::Server) else { return };
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    strand(&place).await;
    let leader = Stage::new().start(&place.tasks().await).await;
    let rescued = until(&tasks, id, |record| record.state != TaskState::Running).await;
    assert_eq!((rescued.state, rescued.attempt), (TaskState::Queued, 1));
    assert_eq!(rescued.failure.unwrap().message, RESCUED);
    assert!(leader.drain(LONG).await.is_clean());
}

/// Once nobody has the file any more: its lock goes with the last task of the process that was.
async fn reopened(place: &Place) -> Tasks {
    let open = async {
        loop {
            match SqlStore::open(&place.url()).await {
                Ok(store) => return Tasks::new(store),
                Err(_) => tokio::time::sleep(SHORT).await,
            }
        }
    };
    tokio::time::timeout(LONG, open).await.expect("the file becomes free")
}

/// Whoever opens a file takes it that nobody else works on it: only its lock says who lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_file_takes_back_what_a_client_elsewhere_still_runs() {
    let place = Place::File(OnFile::fresh());
    let (tasks, durable) = without_workers(&place).await;
    let id = durable.enqueue(Report { customer: 7 }).await.unwrap().id();
    let stranger = Stranger::start(&place).await;
    until(&tasks, id, |record| record.state == TaskState::Running).await;
    assert!(durable.drain(LONG).await.is_clean() && tasks.shutdown(LONG).await.is_clean());
    drop((tasks, durable));
    let tasks = reopened(&place).await;
    let _durable = Durable::builder(&tasks).start().await.unwrap();
    let taken = record(&tasks, id).await;
    assert_eq!((taken.state, taken.attempt, &*taken.failure.unwrap().class), (TaskState::Queued, 1, "process_lost"));
    stranger.stop().await;
}
