//! Notifications by which Postgres wakes other processes. Without them they would poll.

use serde_json::json;
use sqlx::postgres::PgListener;
use tower_offload_tasks::{TaskState, jobs::Jobs};

use super::{
    databases::OnServer,
    support::{Act, LONG, TestDatabase, TestWorkers, ended},
};

const INSERT: &str = "public.river_insert";
const CONTROL: &str = "public.river_control";

async fn listen(database: &TestDatabase, channel: &str) -> PgListener {
    let mut listener = PgListener::connect(&database.url()).await.unwrap();
    listener.listen(channel).await.unwrap();
    listener
}

/// Returns the payload of the next notification.
async fn next(listener: &mut PgListener) -> String {
    let next = tokio::time::timeout(LONG, listener.recv()).await.expect("there is no notification");
    next.unwrap().payload().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_a_job_notifies_other_processes() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let mut listener = listen(&database, "tower_offload_ended").await;
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    assert_eq!(next(&mut listener).await, "");
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn job_that_becomes_due_notifies_its_queue() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let jobs = Jobs::builder(&database.tasks().await).start().await.unwrap();
    let _accepted = jobs.enqueue(Act::Return(json!(1))).queue("later").delay(LONG).await.unwrap();
    let mut listener = listen(&database, INSERT).await;
    assert_eq!(database.execute("UPDATE river_job SET scheduled_at = now() - interval '1 second'").await, 1);
    assert_eq!(next(&mut listener).await, "{\"queue\" : \"later\"}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovered_job_notifies_its_queue() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let jobs = Jobs::builder(&database.tasks().await).start().await.unwrap();
    let _accepted = jobs.enqueue(Act::Return(json!(1))).queue("crashed").delay(LONG).await.unwrap();
    let mut listener = listen(&database, INSERT).await;
    let crash =
        "UPDATE river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = array['to-gone']";
    assert_eq!(database.execute(crash).await, 1);
    assert_eq!(next(&mut listener).await, "{\"queue\" : \"crashed\"}");
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The worker may have missed the first notification.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_request_is_forwarded_again_while_the_job_runs() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let jobs = workers.start(&tasks).await;
    let id = jobs.enqueue(Act::Hold).await.unwrap().id();
    workers.started(1).await;
    let mut listener = listen(&database, CONTROL).await;
    tasks.cancel(id).await.unwrap();
    for _ in 0..2 {
        let request = async { while !next(&mut listener).await.contains("cancel") {} };
        tokio::time::timeout(LONG, request).await.expect("it is not forwarded again");
    }
    workers.release();
    ended(&tasks, id).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}
