//! A job starts when its work starts. What has not begun is handed back and does not count.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use serde_json::json;
use tower_offload::{ThreadPool, pool::Pool};
use tower_offload_tasks::{
    TaskState, Tasks,
    jobs::{Context, Jobs, JobsBuilder},
};

use super::{
    databases::OnServer,
    support::{
        A_WHILE, Act, ActAsync, GRACE, LONG, TestDatabase, TestWorkers, ended, on_each_database, record,
        start_when_free, until,
    },
};
use tower_offload_tests::eventually;

on_each_database! {
    job_that_waits_for_a_thread_is_shown_as_queued
    job_that_waits_for_a_thread_is_handed_back_at_shutdown
    job_that_waits_for_a_thread_is_cancelled_without_a_start
    job_whose_process_crashed_before_its_start_does_not_count
    no_more_jobs_are_claimed_than_the_pool_has_threads
    short_jobs_are_claimed_ahead_and_long_ones_are_not
    every_job_of_a_pool_that_others_use_starts
}

/// A pool whose only thread is occupied by other work.
struct BusyPool {
    pool: ThreadPool,
    release: mpsc::Sender<()>,
}

impl BusyPool {
    fn new() -> Self {
        let pool = ThreadPool::builder().threads(1).build().unwrap();
        let (release, held) = mpsc::channel();
        tokio::spawn(pool.run(move || held.recv()));
        Self { pool, release }
    }

    fn release(&self) {
        self.release.send(()).unwrap();
    }

    fn builder(&self, tasks: &Tasks, workers: &TestWorkers) -> JobsBuilder {
        let workers = workers.clone();
        let work = move |act: Act, progress: Context| workers.act(act, &progress);
        Jobs::builder(tasks).blocking_worker(self.pool.clone(), LONG, work)
    }
}

/// Waits until River has claimed all jobs, and their records show that they have not started.
async fn claimed(database: &TestDatabase, jobs: i64) {
    const CLAIMED: &str = "SELECT count(*) FROM river_job JOIN tower_offload_task AS task ON task.river_id = river_job.id \
                           WHERE river_job.state = 'running' AND task.state = 0";
    eventually("the jobs are claimed and shown as queued", async || database.number(CLAIMED).await >= jobs).await;
}

async fn job_that_waits_for_a_thread_is_shown_as_queued(database: TestDatabase) {
    let (tasks, workers, busy) = (database.tasks().await, TestWorkers::new(), BusyPool::new());
    let jobs = busy.builder(&tasks, &workers).start().await.unwrap();
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    claimed(&database, 1).await;
    let waiting = record(&tasks, id).await;
    assert_eq!((waiting.state, waiting.attempt, waiting.started_at), (TaskState::Queued, 0, None));
    assert_eq!((jobs.running(), jobs.stats().waiting), (0, 1));
    busy.release();
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    assert!(ended.started_at.is_some());
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_that_waits_for_a_thread_is_handed_back_at_shutdown(database: TestDatabase) {
    let (tasks, workers, busy) = (database.tasks().await, TestWorkers::new(), BusyPool::new());
    let jobs = busy.builder(&tasks, &workers).start().await.unwrap();
    let id = jobs.enqueue(Act::Return(json!(1))).max_attempts(1).await.unwrap().id();
    claimed(&database, 1).await;
    let report = jobs.shutdown(LONG).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.ended, report.returned), (0, 1), "{report}");
    let queued = record(&tasks, id).await;
    assert_eq!((queued.state, queued.attempt, queued.started_at), (TaskState::Queued, 0, None));
    assert_eq!(database.number("SELECT count(*) FROM river_job WHERE state = 'available' AND attempt = 0").await, 1);
    busy.release();
    tokio::time::sleep(A_WHILE).await;
    assert!(workers.started.lock().unwrap().is_empty(), "it ran after it was handed back");
}

async fn job_that_waits_for_a_thread_is_cancelled_without_a_start(database: TestDatabase) {
    let (tasks, workers, busy) = (database.tasks().await, TestWorkers::new(), BusyPool::new());
    let jobs = busy.builder(&tasks, &workers).start().await.unwrap();
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    claimed(&database, 1).await;
    tasks.cancel(id).await.unwrap();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Cancelled);
    busy.release();
    tokio::time::sleep(A_WHILE).await;
    assert!(workers.started.lock().unwrap().is_empty());
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn job_whose_process_crashed_before_its_start_does_not_count(database: TestDatabase) {
    let tasks = database.tasks().await;
    let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
    let id = enqueuer.enqueue(Act::Return(json!(1))).max_attempts(1).await.unwrap().id();
    let by = match database {
        TestDatabase::Sqlite(_) => "jsonb_array('to-gone')",
        TestDatabase::Postgres(_) => "array['to-gone']",
    };
    database.execute("UPDATE river_job SET state = 'running', attempt = 1").await;
    database.execute("UPDATE tower_offload_task SET state = 0, attempt = 0, started_at = NULL").await;
    assert!(enqueuer.shutdown(LONG).await.is_clean());
    drop(enqueuer);
    database.execute(&format!("UPDATE river_job SET attempted_by = {by}")).await; // or the first queue recovers it
    let workers = TestWorkers::new();
    let jobs = start_when_free(|| workers.builder(&tasks)).await.unwrap();
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1), "{:?}", ended.failure);
    assert_eq!(jobs.stats().recovered, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Another process has recovered the job in the meantime. On SQLite there is no other process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn job_recovered_while_it_waits_never_begins_here() {
    let Some(server) = OnServer::fresh().await else { return };
    let database = TestDatabase::Postgres(server);
    let (tasks, workers, busy) = (database.tasks().await, TestWorkers::new(), BusyPool::new());
    let jobs = busy.builder(&tasks, &workers).start().await.unwrap();
    let id = jobs.enqueue(Act::Return(json!(1))).await.unwrap().id();
    claimed(&database, 1).await;
    database.execute("UPDATE river_job SET attempted_by = array['to-other']").await;
    busy.release();
    tokio::time::sleep(A_WHILE).await;
    assert!(workers.started.lock().unwrap().is_empty(), "{:?}", record(&tasks, id).await);
    let _ = jobs.shutdown(Duration::from_millis(500)).await;
}

async fn no_more_jobs_are_claimed_than_the_pool_has_threads(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let in_worker = workers.clone();
    let work = move |act: Act, progress: Context| in_worker.act(act, &progress);
    let pool = ThreadPool::builder().threads(2).build().unwrap();
    let jobs = Jobs::builder(&tasks).blocking_worker(pool, LONG, work).start().await.unwrap();
    for _ in 0..6 {
        let _accepted = jobs.enqueue(Act::Hold).await.unwrap();
    }
    workers.started(2).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(database.number("SELECT count(*) FROM river_job WHERE state = 'running'").await, 2);
    workers.release();
    workers.started(6).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn short_jobs_are_claimed_ahead_and_long_ones_are_not(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let running = Arc::new(AtomicUsize::new(0));
    let in_worker = (workers.clone(), running.clone());
    let work = move |ActAsync(act): ActAsync, progress: Context| {
        let (workers, running) = in_worker.clone();
        async move {
            assert!(running.fetch_add(1, Ordering::SeqCst) < 2, "more jobs run than the concurrency permits");
            let ended = workers.act_async(act, progress.into()).await;
            running.fetch_sub(1, Ordering::SeqCst);
            ended
        }
    };
    let jobs = Jobs::builder(&tasks).queue("futures", 2).worker(LONG, work).start().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..100 {
        ids.push(jobs.enqueue(ActAsync(Act::Return(json!(number)))).await.unwrap().id());
    }
    for id in ids {
        assert_eq!(ended(&tasks, id).await.attempt, 1);
    }
    for _ in 0..8 {
        let _accepted = jobs.enqueue(ActAsync(Act::Hold)).await.unwrap();
    }
    workers.started(102).await;
    eventually("long jobs are handed back", async || {
        database.number("SELECT count(*) FROM river_job WHERE state = 'running'").await <= 2
    })
    .await;
    assert!(jobs.shutdown(GRACE).await.is_clean());
    let queued = "SELECT count(*) FROM tower_offload_task WHERE state = 0 AND attempt = 0 AND started_at IS NULL";
    assert_eq!(database.number(queued).await, 8);
}

/// Other calls are always queued in front of the jobs.
async fn every_job_of_a_pool_that_others_use_starts(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let others = tokio::spawn({
        let pool = pool.clone();
        async move {
            loop {
                // Work that takes a while.
                let calls = [(); 8].map(|()| pool.run(|| std::thread::sleep(Duration::from_millis(5))));
                for call in calls {
                    call.await.unwrap();
                }
            }
        }
    });
    let in_worker = workers.clone();
    let work = move |act: Act, progress: Context| in_worker.act(act, &progress);
    let jobs = Jobs::builder(&tasks).blocking_worker(pool, LONG, work).start().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(jobs.enqueue(Act::Return(json!(number))).max_attempts(1).await.unwrap().id());
    }
    for id in ids {
        let ended = until(&tasks, id, |record| record.state.is_final()).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    }
    others.abort();
    assert!(jobs.shutdown(LONG).await.is_clean());
}
