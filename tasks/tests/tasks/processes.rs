//! One process after another on one store.

use std::{convert::Infallible, future, time::Duration};

use tower_offload_tasks::{
    MemoryStore, Reason, Record, TaskState, TaskStore, Tasks, Timestamp,
    store::{Epoch, Op, Process, Written},
};

use super::{
    store_suite::id,
    support::{Failing, LONG, background, done, ended, hold, record},
};

/// P13, as far as a store in memory goes: the first `Tasks` stands for a process that is gone without a word.
#[tokio::test]
async fn what_runs_when_its_process_is_gone_is_lost_and_what_comes_late_is_fenced() {
    let store = MemoryStore::new();
    let (first, background) = (Tasks::new(store.clone()), background());
    let held = hold(&first, &background).await;
    let id = held.id;

    let second = Tasks::new(store.clone());
    second.start().await.unwrap();
    let lost = record(&second, id).await;
    assert_eq!((lost.state, lost.reason), (TaskState::Lost, Some(Reason::ProcessLost)));

    held.release();
    ended(&first, id).await;
    assert!(first.drain(LONG).await.is_clean());
    assert_eq!(first.stats().fenced, 1, "counted");
    assert_eq!(record(&second, id).await, lost, "final");
    assert_eq!(store.get(id).await.unwrap().into_record(), Some(lost));
    let accepted = second.track("x").run(&background, |_| done()).await.unwrap();
    assert_eq!(
        ended(&second, accepted.id()).await.state,
        TaskState::Succeeded,
        "the end of the first ends nothing of its"
    );
}

#[tokio::test]
async fn one_whose_store_another_has_taken_accepts_nothing() {
    let store = MemoryStore::new();
    let (first, background) = (Tasks::new(store.clone()), background());
    first.start().await.unwrap();
    Tasks::new(store.clone()).start().await.unwrap();
    let refused = first.track("x").run(&background, |_| done()).await.unwrap_err();
    assert!(refused.is_store());
}

/// What another process has written is heard of within half a second.
#[tokio::test(start_paused = true)]
async fn a_request_to_cancel_that_another_process_wrote_cancels_the_task() {
    let store = Failing::leased(Duration::from_secs(5));
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let endless = |_| future::pending::<Result<(), Infallible>>();
    let accepted = tasks.track("x").spawn(&background, endless).await.unwrap();
    let request = [Op::RequestCancel { id: accepted.id(), now: Timestamp::default() }];
    assert_eq!(store.inner.write(Epoch::from(0), &request).await.unwrap(), [Written::Done]);
    let record = ended(&tasks, accepted.id()).await;
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Requested)));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_loses_what_ran_and_is_followed_by_another() {
    let store = Failing::leased(Duration::from_secs(5));
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    store.inner.begin(&Process::new("another", Timestamp::default())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await; // a renewal finds out

    let accepted = tasks.track("x").run(&background, |_| done()).await.unwrap();
    assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
    let id = held.id;
    held.release();
    // A paused clock would run to any deadline while the thread still works.
    assert!(tasks.drain(Duration::MAX).await.is_clean());
    assert_eq!(store.inner.get(id).await.unwrap().into_record().unwrap().state, TaskState::Lost);
    assert_eq!(tasks.stats().fenced, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_unnoticed_refuses_once_and_begins_again() {
    let store = Failing::leased(Duration::from_secs(3600));
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.inner.begin(&Process::new("another", Timestamp::default())).await.unwrap();
    assert!(tasks.track("x").run(&background, |_| done()).await.unwrap_err().is_store());
    let accepted = tasks.track("x").run(&background, |_| done()).await.unwrap();
    assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
}

/// The owner has not heard of the request when its task ends, so that its record comes to the version that the request has.
#[tokio::test(start_paused = true)]
async fn a_task_of_another_process_that_ends_while_it_is_asked_to_is_seen_to_end() {
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
    let seen = tokio::time::timeout(LONG, subscription.changed()).await.expect("it is never told").unwrap();
    assert_eq!(seen.unwrap().state, TaskState::Failed);
}

/// The task of another process, of which the store is all that is known.
#[tokio::test(start_paused = true)]
async fn a_task_of_another_process_is_watched_and_cancelled_through_the_store() {
    let store = Failing::leased(Duration::from_secs(5));
    let tasks = Tasks::new(store.clone());
    tasks.start().await.unwrap();
    let (epoch, mut theirs) = (Epoch::from(1), Record::new(id(1), "theirs", Timestamp::default()));
    store.inner.write(epoch, &[Op::Accept(Box::new(theirs.clone()))]).await.unwrap();
    let mut subscription = tasks.subscribe(id(1)).await.unwrap().unwrap();
    assert_eq!(subscription.record(), &theirs);

    let asked = tasks.cancel(id(1)).await.unwrap().into_record().unwrap();
    assert!(asked.cancel_requested_at.is_some() && asked.state == TaskState::Queued);
    assert_eq!(subscription.changed().await.unwrap(), Some(&asked));
    assert_eq!(store.inner.cancel_requests(epoch).await.unwrap(), [id(1)]);

    (theirs.state, theirs.version, theirs.finished_at) = (TaskState::Cancelled, 9, Some(Timestamp::default()));
    store.inner.write(epoch, &[Op::Update(Box::new(theirs))]).await.unwrap();
    assert_eq!(subscription.changed().await.unwrap().unwrap().state, TaskState::Cancelled);
    assert!(subscription.changed().await.unwrap().is_none());
}
