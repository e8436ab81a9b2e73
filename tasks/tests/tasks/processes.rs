//! Several processes on one store.

use std::{convert::Infallible, future, time::Duration};

use tower_offload_tasks::{
    MemoryStore, Reason, Record, TaskState, TaskStore, Tasks, Timestamp,
    store::{Epoch, Op, Written},
};

use super::{
    store_suite::id,
    support::{Failing, LONG, background, done, ended, hold, record},
};

/// Another process ends the epoch of the first one, which stalls.
#[tokio::test]
async fn late_write_of_a_process_whose_epoch_has_ended_is_fenced() {
    let store = MemoryStore::new();
    let (first, background) = (Tasks::new(store.clone()), background());
    let held = hold(&first, &background).await;
    let id = held.id;
    let second = Tasks::new(store.clone());
    second.start().await.unwrap();
    store.end(Epoch::from(1), Timestamp::default()).await.unwrap();
    let lost = record(&second, id).await;
    assert_eq!((lost.state, lost.reason), (TaskState::Lost, Some(Reason::ProcessLost)));

    held.release();
    ended(&first, id).await;
    assert!(first.shutdown(LONG).await.is_clean());
    assert_eq!(first.stats().fenced, 1, "the late write is counted");
    assert_eq!(record(&second, id).await, lost, "lost is final");
    assert_eq!(store.get(id).await.unwrap().into_record(), Some(lost));
    let accepted = second.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    assert_eq!(
        ended(&second, accepted.id()).await.state,
        TaskState::Succeeded,
        "the shutdown of the first does not affect the second"
    );
}

#[tokio::test]
async fn process_whose_epoch_has_ended_begins_another() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.end(Epoch::from(1), Timestamp::default()).await.unwrap();
    let accepted = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn cancel_request_of_another_process_cancels_the_task() {
    let store = Failing::leased(Duration::from_secs(5));
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let pending = |_| future::pending::<Result<(), Infallible>>();
    let accepted = tasks.track("x").spawn(&background, pending).await.unwrap();
    let request = [Op::RequestCancel { id: accepted.id(), now: Timestamp::default() }];
    assert_eq!(store.inner.write(Epoch::from(0), &request).await.unwrap(), [Written::Done]);
    let record = ended(&tasks, accepted.id()).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Requested)));
}

#[tokio::test(start_paused = true)]
async fn expired_lease_loses_the_running_task_and_is_replaced() {
    let store = Failing::leased(Duration::from_secs(5));
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    store.inner.end(Epoch::from(1), Timestamp::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await; // until the next renewal

    let accepted = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
    let id = held.id;
    held.release();
    // A paused clock would advance to any deadline while the thread still runs.
    assert!(tasks.shutdown(Duration::MAX).await.is_clean());
    assert_eq!(store.inner.get(id).await.unwrap().into_record().unwrap().state, TaskState::Lost);
    assert_eq!(tasks.stats().fenced, 1);
}

#[tokio::test]
async fn lease_with_the_longest_interval_is_accepted() {
    let store = Failing::leased(Duration::MAX);
    let (tasks, background) = (Tasks::new(store), background());
    let accepted = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
    assert!(tasks.shutdown(LONG).await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn unnoticed_expiry_rejects_no_task_and_begins_an_epoch() {
    let store = Failing::leased(Duration::from_secs(3600));
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.inner.end(Epoch::from(1), Timestamp::default()).await.unwrap();
    let accepted = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
}

/// The owner does not know of the request when its task ends, so both give the record the same
/// version.
#[tokio::test(start_paused = true)]
async fn end_of_a_task_is_seen_despite_an_equal_version() {
    let store = Failing::leased(Duration::from_secs(5));
    let tasks = Tasks::new(store.clone());
    tasks.start().await.unwrap();
    let epoch = Epoch::from(1);
    let mut theirs = Record::new(id(1), "theirs", Timestamp::default());
    store.inner.write(epoch, &[Op::Accept(Box::new(theirs.clone()))]).await.unwrap();
    tasks.cancel(id(1)).await.unwrap();
    let mut subscription = tasks.subscribe(id(1)).await.unwrap().unwrap();
    assert_eq!(subscription.record().version, 2);

    (theirs.state, theirs.version) = (TaskState::Failed, 2);
    theirs.finished_at = Some(Timestamp::default());
    assert_eq!(store.inner.write(epoch, &[Op::Update(Box::new(theirs))]).await.unwrap(), [Written::Done]);
    let seen = tokio::time::timeout(LONG, subscription.changed()).await.expect("the end is not seen").unwrap();
    assert_eq!(seen.unwrap().state, TaskState::Failed);
}

#[tokio::test(start_paused = true)]
async fn task_of_another_process_is_followed_and_cancelled() {
    let store = Failing::leased(Duration::from_secs(5));
    let tasks = Tasks::new(store.clone());
    tasks.start().await.unwrap();
    let (epoch, mut theirs) = (Epoch::from(1), Record::new(id(1), "theirs", Timestamp::default()));
    store.inner.write(epoch, &[Op::Accept(Box::new(theirs.clone()))]).await.unwrap();
    let mut subscription = tasks.subscribe(id(1)).await.unwrap().unwrap();
    assert_eq!(subscription.record(), &theirs);

    let requested = tasks.cancel(id(1)).await.unwrap().into_record().unwrap();
    assert!(requested.cancel_requested_at.is_some() && requested.state == TaskState::Queued);
    assert_eq!(subscription.changed().await.unwrap(), Some(&requested));
    assert_eq!(store.inner.cancel_requests(epoch).await.unwrap(), [id(1)]);

    (theirs.state, theirs.version, theirs.finished_at) = (TaskState::Cancelled, 9, Some(Timestamp::default()));
    store.inner.write(epoch, &[Op::Update(Box::new(theirs))]).await.unwrap();
    assert_eq!(subscription.changed().await.unwrap().unwrap().state, TaskState::Cancelled);
    assert!(subscription.changed().await.unwrap().is_none());
}
