//! The callback for jobs that have ended.

use std::sync::{Arc, Mutex, mpsc};

use serde_json::json;
use tower_offload_tasks::{
    BulkAction, Record, TaskId, TaskState,
    store::{Filter, Page},
};
use tower_offload_tests::eventually;

use super::support::{Act, LONG, TestDatabase, TestWorkers, ended, on_each_database};

on_each_database! {
    callback_gets_each_final_record_once
    callback_is_called_for_jobs_that_operators_end
    slow_callback_delays_no_job_and_a_shutdown_waits_for_it
}

async fn callback_gets_each_final_record_once(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let records = Arc::new(Mutex::new(Vec::<Record>::new()));
    let called = records.clone();
    let builder = workers.builder(&tasks).on_end(move |record| {
        called.lock().unwrap().push(record.clone());
        assert!(record.state != TaskState::Failed, "a panic affects no other call");
    });
    let jobs = builder.start().await.unwrap();
    let failed = jobs.enqueue(Act::Fail).await.unwrap().id(); // three attempts
    let succeeded = jobs.enqueue(Act::Return(json!(7))).await.unwrap().id();
    let followed = jobs.enqueue(Act::Return(json!(8))).await.unwrap().id();
    let cancelled = jobs.enqueue(Act::Hold).delay(LONG).await.unwrap().id();
    tasks.cancel(cancelled).await.unwrap();
    let stopped = jobs.enqueue(Act::UntilCancelled).await.unwrap().id();
    ended(&tasks, followed).await;
    eventually("all jobs but one have ended", async || records.lock().unwrap().len() == 4).await;
    tasks.cancel(stopped).await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());

    let records = records.lock().unwrap();
    let state = |id: TaskId| {
        let found: Vec<_> = records.iter().filter(|record| record.id == id).map(|record| record.state).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]
    };
    assert_eq!(
        [failed, succeeded, followed].map(state),
        [TaskState::Failed, TaskState::Succeeded, TaskState::Succeeded]
    );
    assert_eq!([cancelled, stopped].map(state), [TaskState::Cancelled; 2]);
    let result = records.iter().find(|record| record.id == succeeded).and_then(|record| record.result.clone());
    assert_eq!(result.unwrap().as_str(), "7");
}

async fn callback_is_called_for_jobs_that_operators_end(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = ends.clone();
    let jobs =
        workers.builder(&tasks).on_end(move |record| seen.lock().unwrap().push(record.id)).start().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(jobs.enqueue(Act::Return(json!(1))).delay(LONG).await.unwrap().id());
    }
    tasks.discard(ids[0]).await.unwrap();
    // More than are forwarded at once.
    let cancels: Vec<_> = ids[1..11]
        .iter()
        .map(|id| {
            tokio::spawn({
                let (tasks, id) = (tasks.clone(), *id);
                async move { tasks.cancel(id).await.unwrap() }
            })
        })
        .collect();
    for cancel in cancels {
        cancel.await.unwrap();
    }
    tasks.bulk(BulkAction::Cancel, &Filter::default(), Page::default()).await.unwrap();
    eventually("every callback", async || ends.lock().unwrap().len() == ids.len()).await;
    assert!(jobs.shutdown(LONG).await.is_clean());
    let mut ended = ends.lock().unwrap().clone();
    ended.sort_unstable();
    assert_eq!(ended, ids);
}

async fn slow_callback_delays_no_job_and_a_shutdown_waits_for_it(database: TestDatabase) {
    let (tasks, workers) = (database.tasks().await, TestWorkers::new());
    let (release, held) = mpsc::channel::<()>();
    let (held, calls) = (Mutex::new(held), Arc::new(Mutex::new(0)));
    let counted = calls.clone();
    let builder = workers.builder(&tasks).on_end(move |_| {
        let _ = held.lock().unwrap().recv();
        *counted.lock().unwrap() += 1;
    });
    let jobs = builder.start().await.unwrap();
    for number in 0..3 {
        let id = jobs.enqueue(Act::Return(json!(number))).await.unwrap().id();
        assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    }
    assert_eq!((*calls.lock().unwrap(), jobs.stats().skipped_callbacks), (0, 0));
    let stopping = jobs.clone();
    let shutdown = tokio::spawn(async move { stopping.shutdown(LONG).await });
    eventually("all jobs have ended", async || jobs.is_closed() && jobs.stats().unwritten == 0).await;
    assert!(!shutdown.is_finished());
    drop(release);
    assert!(shutdown.await.unwrap().is_clean());
    assert_eq!(*calls.lock().unwrap(), 3);
}
