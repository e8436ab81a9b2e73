//! Failing stores: new tasks are rejected, accepted tasks continue and are written later.

use bytes::Bytes;
use http::StatusCode;
use tower_offload_tasks::{Reason, TaskId, TaskState, TaskStore, Tasks, store::Found};
use tower_offload_tests::eventually;

use super::support::{Failing, LONG, Mode, background, done, ended, hold, record, try_hold};

/// Returns name, state and reason of all records in the store.
async fn stored(store: &Failing) -> Vec<(String, TaskState, Option<Reason>)> {
    let all = store.inner.list(&Default::default(), Default::default()).await.unwrap();
    all.records.into_iter().map(|record| (record.name, record.state, record.reason)).collect()
}

/// A failure of the store at the end of a task does not leave the record at `running`.
#[tokio::test(start_paused = true)]
async fn failing_store_rejects_new_tasks_and_catches_up_later() {
    for (mode, is_full) in [(Mode::Unavailable, false), (Mode::DiskFull, true), (Mode::Panics, false)] {
        let store = Failing::new();
        let (tasks, background) = (Tasks::new(store.clone()), background());
        let held = hold(&tasks, &background).await;
        let id = held.id;

        store.set(mode);
        for _ in 0..3 {
            let error = tasks
                .track("never")
                .spawn_blocking(&background, |_| -> Result<(), &str> { panic!("it ran") })
                .await
                .unwrap_err();
            assert!(error.is_store() && error.is_full() == is_full, "{mode:?}: {error}");
            assert!(error.store_error().is_some());
            let response = error.into_response::<Bytes>();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(!response.body().windows(6).any(|bytes| bytes == b"server"), "the cause is not disclosed");
        }
        assert_eq!(background.stats().reserved, 0);
        assert_eq!(record(&tasks, id).await.state, TaskState::Running, "the task is known");
        held.release();
        let finished = ended(&tasks, id).await;
        assert_eq!(finished.state, TaskState::Succeeded);
        assert_eq!(record(&tasks, id).await, finished, "although it is not written");
        assert!(tasks.stats().failed_writes > 0);

        store.set(Mode::Works);
        eventually("the record is written", async || tasks.stats().open == 0).await;
        assert_eq!(stored(&store).await, [("held".to_owned(), TaskState::Succeeded, None)]);
        let accepted = tasks.track("next").spawn_blocking(&background, |_| done()).await.unwrap();
        assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
    }
}

#[tokio::test]
async fn reads_that_fail_are_counted() {
    let store = Failing::new();
    let tasks = Tasks::new(store.clone());
    tasks.start().await.unwrap();
    store.set(Mode::Unavailable);
    for read in 1..=3 {
        tasks.get(TaskId::from_bytes([0; TaskId::BYTES])).await.unwrap_err();
        assert_eq!(tasks.stats().failed_reads, 2 * read - 1);
        tasks.list(&Default::default(), Default::default()).await.unwrap_err();
        assert_eq!(tasks.stats().failed_reads, 2 * read);
    }
}

#[tokio::test(start_paused = true)]
async fn sweeps_and_looks_that_fail_are_counted() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await; // so that cancel requests are looked for
    assert_eq!(tasks.stats().failed_maintenance, 0);
    store.set(Mode::Unavailable);
    tokio::time::sleep(std::time::Duration::from_millis(30_100)).await;
    let failed = tasks.stats().failed_maintenance;
    // One more of each if the clock was advanced while the task was being held.
    assert!(
        (3 + 6 + 60 - 2..=4 + 7 + 61).contains(&failed),
        "3 sweeps, 6 looks for processes, 60 for cancels: {failed}"
    );
    held.release();
}

/// The transaction was committed, but the reply was lost.
#[tokio::test(start_paused = true)]
async fn rejected_record_that_was_stored_ends_as_not_accepted() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.set(Mode::ReplyLost);
    tasks.track("never").spawn_blocking(&background, |_| done()).await.unwrap_err();
    store.set(Mode::Works);
    eventually("the record is written", async || tasks.stats().open == 0).await;
    assert_eq!(stored(&store).await, [("never".to_owned(), TaskState::Cancelled, Some(Reason::NotAccepted))]);
    assert_eq!(background.stats().completed, 0);
}

#[tokio::test(start_paused = true)]
async fn final_record_whose_reply_was_lost_is_not_fenced() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    eventually("the start is written", async || {
        tasks.get(held.id).await.unwrap() == store.inner.get(held.id).await.unwrap()
    })
    .await;
    store.set(Mode::ReplyLost);
    held.release();
    eventually("a write fails", async || tasks.stats().failed_writes > 0).await;
    store.set(Mode::Works);
    eventually("the record is written", async || tasks.stats().open == 0).await;
    assert_eq!(stored(&store).await, [("held".to_owned(), TaskState::Succeeded, None)]);
    assert_eq!(tasks.stats().fenced, 0);
}

#[tokio::test(start_paused = true)]
async fn record_that_the_store_rejects_does_not_affect_others() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.set(Mode::Poisoned);
    let held = store.hold().await;
    let track = |name: &'static str| {
        let (tasks, background) = (tasks.clone(), background.clone());
        tokio::spawn(async move { tasks.track(name).spawn_blocking(&background, |_| done()).await })
    };
    let first = track("first");
    let others: Vec<_> = ["a", "poison", "b"].map(track).into();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(held);
    assert!(first.await.unwrap().is_ok());
    let mut accepted = Vec::new();
    for other in others {
        accepted.push(other.await.unwrap().is_ok());
    }
    assert_eq!(accepted, [true, false, true]);
    assert!(tasks.track("after").spawn_blocking(&background, |_| done()).await.is_ok(), "a later task");
}

/// The record can be seen, and cancelled, before its caller has a reply.
#[tokio::test(start_paused = true)]
async fn caller_of_a_task_cancelled_while_it_is_accepted_gets_a_reply() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.set(Mode::ReplyWrong);
    let gate = store.hold().await;
    let track = |name: &'static str| {
        let (tasks, background) = (tasks.clone(), background.clone());
        tokio::spawn(async move { tasks.track(name).spawn_blocking(&background, |_| done()).await })
    };
    let (cancelled, other) = (track("cancelled"), track("other"));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let all = store.inner.list(&Default::default(), Default::default()).await.unwrap().records;
    assert_eq!(all.len(), 2, "in one batch");
    let id = all.iter().find(|record| record.name == "cancelled").unwrap().id;
    assert_eq!(tasks.cancel(id).await.unwrap().into_record().unwrap().state, TaskState::Cancelled);
    store.set(Mode::Works);
    drop(gate);
    let other = other.await.unwrap().unwrap();
    assert_eq!(ended(&tasks, other.id()).await.state, TaskState::Succeeded);
    let reply = tokio::time::timeout(LONG, cancelled).await.expect("the caller waits for a reply");
    assert!(reply.unwrap().is_err_and(|error| error.is_store()));
    assert!(tasks.shutdown(LONG).await.is_clean());
    let record = store.inner.get(id).await.unwrap().into_record().unwrap();
    assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Requested)));
}

#[tokio::test]
async fn store_that_cannot_be_opened_is_retried() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    store.set(Mode::Unavailable);
    assert!(tasks.start().await.unwrap_err().is_unavailable());
    assert!(try_hold(&tasks, &background).await.is_err_and(|error| error.is_store()));
    assert!(tasks.get("00000000000000000000000000000000000z".parse().unwrap()).await.is_err());
    store.set(Mode::Works);
    tasks.start().await.unwrap();
    assert_eq!(tasks.get("00000000000000000000000000000000000z".parse().unwrap()).await.unwrap(), Found::Unknown);
    hold(&tasks, &background).await.release();
}

/// The client disconnects while the record is written.
#[tokio::test]
async fn caller_that_leaves_during_the_write_abandons_the_task() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    let held = store.hold().await;
    let never = |_| -> Result<(), &str> { panic!("it ran") };
    let mut accepting = Box::pin(tasks.track("left").spawn_blocking(&background, never));
    assert!(futures_util::poll!(&mut accepting).is_pending());
    tokio::task::yield_now().await; // the writer task waits for the permit
    drop(accepting);
    assert_eq!((background.stats().reserved, background.stats().skipped), (0, 1));
    drop(held);
    assert!(tasks.shutdown(LONG).await.is_clean());
    assert_eq!(stored(&store).await, [("left".to_owned(), TaskState::Cancelled, Some(Reason::Abandoned))]);
}

#[tokio::test]
async fn caller_that_leaves_before_the_write_leaves_no_record() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    let mut accepting = Box::pin(tasks.track("left").spawn_blocking(&background, |_| done()));
    assert!(futures_util::poll!(&mut accepting).is_pending());
    drop(accepting);
    assert!(tasks.shutdown(LONG).await.is_clean());
    assert_eq!(stored(&store).await, []);
}
