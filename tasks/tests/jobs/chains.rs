//! Jobs that enqueue others in the transaction of their own end.

use std::{
    sync::{Mutex, mpsc as blocking},
    time::Duration,
};

use serde_json::json;
use tokio::sync::mpsc;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    Failure, Status, TaskId, TaskState, Tasks,
    jobs::{Backoff, Context, Jobs, JobsBuilder, Unique},
};

use super::{
    context::Work,
    support::{A_WHILE, Act, GRACE, LONG, TestDatabase, ended, on_each_database, record, until},
};

on_each_database! {
    successor_exists_only_if_its_parent_succeeds
    late_end_enqueues_no_successor
    successor_of_an_end_that_is_written_late_exists_once
    successors_are_validated_and_limited
}

const SUCCESSORS: &str = "SELECT count(*) FROM river_job WHERE kind = 'act'";

fn builder(tasks: &Tasks) -> JobsBuilder {
    Jobs::builder(tasks)
        .backoff(Backoff::fixed(Duration::ZERO))
        .worker(LONG, |_: Act, context| async move { Ok::<_, Failure>(context.owner() == Some("ann")) })
}

fn then(context: &Context) -> Result<TaskId, Failure> {
    Ok(context.then(context.jobs().enqueue(Act::Return(json!(1))))?)
}

async fn successor_exists_only_if_its_parent_succeeds(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = builder(&tasks)
        .blocking_worker(ThreadPool::blocking(1), LONG, |_: Work, context| {
            let next = [then(&context)?, then(&context)?];
            if context.attempt() == 1 { Err(Failure::new("first", "fails")) } else { Ok(next) }
        })
        .start()
        .await
        .unwrap();
    // An end that is followed is written in another way.
    for is_followed in [false, true] {
        let id = jobs.enqueue(Work(0)).owner("ann").await.unwrap().id();
        let _subscription = if is_followed { tasks.subscribe(id).await.unwrap() } else { None };
        let next: [TaskId; 2] = ended(&tasks, id).await.result.unwrap().parse().unwrap();
        for next in next {
            let next = ended(&tasks, next).await;
            assert_eq!((next.owner.as_deref(), next.parent), (Some("ann"), Some(id)));
            assert_eq!(next.result.as_ref().unwrap().as_str(), "true", "the worker sees the owner");
            assert_eq!(serde_json::to_value(Status::from(&next)).unwrap()["parent"], json!(id));
        }
    }
    assert_eq!(database.number(SUCCESSORS).await, 4, "an attempt that failed has enqueued jobs");
    assert_eq!(jobs.stats().succeeded, 6);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

async fn late_end_enqueues_no_successor(database: TestDatabase) {
    let tasks = database.tasks().await;
    let (begun, mut is_begun) = mpsc::unbounded_channel();
    let (release, released) = blocking::channel::<()>();
    let released = Mutex::new(released);
    let jobs = builder(&tasks)
        .blocking_worker(ThreadPool::blocking(1), LONG, move |_: Work, context| {
            let next = then(&context)?;
            let _ = begun.send(next);
            let _ = released.lock().unwrap().recv();
            Ok::<_, Failure>(next)
        })
        .start()
        .await
        .unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    let first = is_begun.recv().await.unwrap();
    let requeue = "UPDATE river_job SET state = 'available' WHERE state = 'running'";
    assert_eq!(database.execute(requeue).await, 1, "as if another process had recovered the job");
    release.send(()).unwrap();
    let second = is_begun.recv().await.unwrap();
    assert_eq!(database.number(SUCCESSORS).await, 0, "the late end of the first attempt has enqueued a job");
    release.send(()).unwrap();
    let record = ended(&tasks, id).await;
    assert_eq!((record.attempt, record.result.unwrap().parse()), (2, Ok(second)));
    ended(&tasks, second).await;
    assert!(tasks.get(first).await.unwrap().into_record().is_none());
    assert_eq!(database.number(SUCCESSORS).await, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// The database rejects the insertion for a while, so the end is not written at first.
async fn successor_of_an_end_that_is_written_late_exists_once(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = builder(&tasks).worker(LONG, |_: Work, context| async move { then(&context) }).start().await.unwrap();
    let (reject, accept) = match database {
        TestDatabase::Sqlite(_) => (
            "CREATE TRIGGER reject BEFORE INSERT ON river_job WHEN NEW.kind = 'act' BEGIN SELECT RAISE(ABORT, 'no'); END",
            "DROP TRIGGER reject",
        ),
        TestDatabase::Postgres(_) => (
            "ALTER TABLE river_job ADD CONSTRAINT reject CHECK (kind <> 'act')",
            "ALTER TABLE river_job DROP CONSTRAINT reject",
        ),
    };
    database.execute(reject).await;
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    until(&tasks, id, |record| record.state == TaskState::Running).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Running, "it ends without its successor");
    database.execute(accept).await;
    assert!(jobs.shutdown(GRACE).await.is_clean(), "the shutdown writes it");
    let record = ended(&tasks, id).await;
    assert_eq!((record.state, record.attempt), (TaskState::Succeeded, 1));
    let next = tasks.get(record.result.unwrap().parse().unwrap()).await.unwrap().into_record().unwrap();
    assert_eq!((next.parent, database.number(SUCCESSORS).await), (Some(id), 1));
}

async fn successors_are_validated_and_limited(database: TestDatabase) {
    let tasks = database.tasks().await;
    let jobs = builder(&tasks)
        .worker(LONG, |_: Work, context| async move {
            let jobs = context.jobs();
            let job = || jobs.enqueue(Act::Return(json!(1))).delay(LONG);
            let unique = context.then(job().unique(Unique::by_kind())).unwrap_err().to_string();
            let priority = context.then(job().priority(9)).unwrap_err().to_string();
            let accepted = (0..101).filter(|_| context.then(job()).is_ok()).count();
            Ok::<_, Failure>(json!([unique, priority, accepted]))
        })
        .start()
        .await
        .unwrap();
    let id = jobs.enqueue(Work(0)).await.unwrap().id();
    let result: serde_json::Value = ended(&tasks, id).await.result.unwrap().parse().unwrap();
    assert!(result[0].as_str().unwrap().contains("cannot be unique"), "{result}");
    assert!(result[1].as_str().unwrap().contains("priority"), "{result}");
    assert_eq!(result[2], 100);
    assert_eq!(database.number(&format!("{SUCCESSORS} AND state = 'scheduled'")).await, 100);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// Processes that are killed. The test starts itself as a child.
#[cfg(target_os = "linux")]
mod killed {
    use std::os::unix::process::ExitStatusExt;

    use tokio::process::Command;

    use super::*;
    use crate::support::{kill_this_process, tasks_when_free};

    /// URL of the database of a child.
    const URL: &str = "TOWER_OFFLOAD_CHAINS_TEST";
    const KILLED: i32 = 9;

    on_each_database! {
        process_that_is_killed_before_the_commit_enqueues_nothing
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "started by `process_that_is_killed_before_the_commit_enqueues_nothing`"]
    async fn child() {
        let Ok(url) = std::env::var(URL) else { return };
        let tasks = tasks_when_free(&url).await;
        let work = |_: Work, context: Context| {
            then(&context)?;
            kill_this_process();
            Ok::<_, Failure>(())
        };
        let _jobs = builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, work).start().await.unwrap();
        tokio::time::sleep(LONG).await;
    }

    async fn process_that_is_killed_before_the_commit_enqueues_nothing(database: TestDatabase) {
        let id = {
            let tasks = database.tasks().await;
            let enqueuer = Jobs::builder(&tasks).start().await.unwrap();
            let id = enqueuer.enqueue(Work(0)).await.unwrap().id();
            assert!(enqueuer.shutdown(LONG).await.is_clean());
            assert!(tasks.shutdown(LONG).await.is_clean());
            id
        };
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "chains::killed::child", "--ignored", "--nocapture"]).kill_on_drop(true);
        let output = child.env(URL, database.url()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(KILLED), "{text}");
        if let TestDatabase::Postgres(_) = database {
            database.execute("DELETE FROM tower_offload_client").await; // its lease expires later
        }
        assert_eq!(database.number(SUCCESSORS).await, 0);
        let tasks = database.tasks().await;
        let work = |_: Work, context: Context| then(&context);
        let jobs = builder(&tasks).blocking_worker(ThreadPool::blocking(1), LONG, work).start().await.unwrap();
        let record = ended(&tasks, id).await;
        ended(&tasks, record.result.unwrap().parse().unwrap()).await;
        assert_eq!((record.attempt, database.number(SUCCESSORS).await), (2, 1));
        assert!(jobs.shutdown(LONG).await.is_clean());
    }
}
