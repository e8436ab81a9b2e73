//! Attempts that take too long, and drains that do not wait for ever.

use std::time::Duration;

use serde_json::json;
use tower_offload::ThreadPool;
use tower_offload_tasks::{
    Progress, TaskState,
    jobs::{Backoff, Durable},
};

use super::support::{Act, ActAsync, LONG, Place, SHORT, Stage, ended, on_each_database, record, until};

on_each_database! {
    a_sync_attempt_that_takes_too_long_is_told_and_none_other_begins_before_its_end
    an_async_attempt_that_takes_too_long_is_dropped_and_has_timed_out
    what_runs_when_a_drain_ends_is_handed_back_and_not_counted
    sync_work_that_goes_on_past_a_drain_is_reported
    progress_is_told_while_it_runs_and_its_last_word_is_kept
    a_full_pool_costs_no_attempt
}

async fn a_sync_attempt_that_takes_too_long_is_told_and_none_other_begins_before_its_end(place: Place) {
    let tasks = place.tasks().await;
    let (stage, on_pool) = (Stage::new(), Stage::new());
    let of_worker = on_pool.clone();
    let work = move |_: Act, progress: Progress| {
        let act = if of_worker.begun.lock().unwrap().is_empty() { Act::Hold } else { Act::Return(json!("second")) };
        of_worker.act(act, &progress)
    };
    let builder = Durable::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
    let durable = builder.sync_worker(ThreadPool::blocking(2), SHORT, work).start().await.unwrap();
    let accepted = durable.enqueue(Act::Hold).await.unwrap();
    on_pool.begun(1).await;
    // Far beyond its time, and beyond River's patience with one that is stuck if that were River's own.
    tokio::time::sleep(50 * SHORT).await;
    assert_eq!(on_pool.begun.lock().unwrap().len(), 1, "never two at once");
    assert_eq!(record(&tasks, accepted.id()).await.state, TaskState::Running);
    on_pool.release();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 2));
    assert!(durable.drain(LONG).await.is_clean());
    drop(stage);
}

async fn an_async_attempt_that_takes_too_long_is_dropped_and_has_timed_out(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let of_worker = stage.clone();
    let work = move |ActAsync(act): ActAsync, progress: Progress| {
        let stage = of_worker.clone();
        async move { stage.act_async(act, progress).await }
    };
    let builder = Durable::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
    let durable = builder.async_worker(SHORT, work).start().await.unwrap();
    let accepted = durable.enqueue(ActAsync(Act::Hold)).max_attempts(2).await.unwrap();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!((ended.state, ended.attempt), (TaskState::TimedOut, 2));
    assert_eq!(ended.failure.unwrap().class, "timeout");
    assert!(durable.drain(LONG).await.is_clean());
}

async fn what_runs_when_a_drain_ends_is_handed_back_and_not_counted(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(ActAsync(Act::Hold)).await.unwrap();
    let looks = durable.enqueue(Act::UntilCancelled).await.unwrap();
    stage.begun(2).await;
    let report = durable.drain(Duration::from_secs(2)).await;
    assert!(report.is_clean(), "{report}");
    for id in [held.id(), looks.id()] {
        let handed_back = record(&tasks, id).await;
        assert_eq!((handed_back.state, handed_back.attempt), (TaskState::Queued, 0));
    }
}

async fn sync_work_that_goes_on_past_a_drain_is_reported(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let held = durable.enqueue(Act::Hold).await.unwrap();
    stage.begun(1).await;
    let report = durable.drain(Duration::from_millis(100)).await;
    assert_eq!(report.still_running, [held.id()]);
    assert_eq!(record(&tasks, held.id()).await.state, TaskState::Running, "it does");
    assert_eq!(durable.running(), 1);
    stage.release();
    while durable.running() > 0 {
        tokio::time::sleep(SHORT).await;
    }
}

async fn progress_is_told_while_it_runs_and_its_last_word_is_kept(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let of_worker = stage.clone();
    let work = move |_: Act, progress: Progress| {
        progress.set(0.5, "halfway");
        let held = of_worker.act(Act::Hold, &progress);
        progress.set(1.0, "done");
        held
    };
    let durable = Durable::builder(&tasks).sync_worker(ThreadPool::blocking(1), LONG, work).start().await.unwrap();
    let accepted = durable.enqueue(Act::Hold).await.unwrap();
    let halfway = until(&tasks, accepted.id(), |record| record.progress.is_some()).await;
    assert_eq!(
        (halfway.state, halfway.progress, halfway.message.as_deref()),
        (TaskState::Running, Some(0.5), Some("halfway"))
    );
    stage.release();
    let ended = ended(&tasks, accepted.id()).await;
    assert_eq!(
        (ended.state, ended.progress, ended.message.as_deref()),
        (TaskState::Succeeded, Some(1.0), Some("done"))
    );
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_full_pool_costs_no_attempt(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let of_worker = stage.clone();
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let work = move |act: Act, progress: Progress| of_worker.act(act, &progress);
    let durable = Durable::builder(&tasks).sync_worker(pool, LONG, work).start().await.unwrap();
    let held = durable.enqueue(Act::Hold).await.unwrap();
    stage.begun(1).await;
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(durable.enqueue(Act::Return(json!(number))).max_attempts(1).await.unwrap().id());
    }
    // One waits in the pool; the others are refused there, again and again.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stage.release();
    ended(&tasks, held.id()).await;
    for id in others {
        let ended = ended(&tasks, id).await;
        assert_eq!((ended.state, ended.attempt), (TaskState::Succeeded, 1));
    }
    assert!(durable.drain(LONG).await.is_clean());
}
