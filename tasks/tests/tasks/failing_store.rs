//! A store that fails: a clear error before any 202, and what was accepted goes on and is written later.

use std::error::Error;

use bytes::Bytes;
use http::StatusCode;
use tower_offload_tasks::{Reason, TaskState, TaskStore, Tasks, store::Found};

use super::support::{Failing, LONG, Mode, background, done, ended, hold, record, try_hold};

/// What the store has, all of it, by name and state.
async fn written(store: &Failing) -> Vec<(String, TaskState, Option<Reason>)> {
    let all = store.inner.list(&Default::default(), Default::default()).await.unwrap();
    all.records.into_iter().map(|record| (record.name, record.state, record.reason)).collect()
}

/// Also P13's other half: nothing sticks at `running` because a store was out.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_refuses_what_is_new_and_catches_up_with_what_is_there() {
    for (mode, is_full) in [(Mode::Unavailable, false), (Mode::DiskFull, true), (Mode::Panics, false)] {
        let store = Failing::new();
        let (tasks, background) = (Tasks::new(store.clone()), background());
        let held = hold(&tasks, &background).await;
        let id = held.id;

        store.set(mode);
        for _ in 0..3 {
            let refused =
                tasks.track("never").run(&background, |_| -> Result<(), &str> { panic!("it ran") }).await.unwrap_err();
            assert!(refused.is_store() && refused.is_full() == is_full, "{mode:?}: {refused}");
            assert!(refused.source().and_then(Error::source).is_some());
            let response = refused.into_response::<Bytes>();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(
                !response.body().windows(6).any(|bytes| bytes == b"server"),
                "what is wrong with it is ours to know"
            );
        }
        assert_eq!(background.stats().reserved, 0);
        assert_eq!(record(&tasks, id).await.state, TaskState::Running, "what is there is known");
        held.release();
        let over = ended(&tasks, id).await;
        assert_eq!(over.state, TaskState::Succeeded);
        assert_eq!(record(&tasks, id).await, over, "though it is not written");
        assert!(tasks.stats().failed_writes > 0);

        store.set(Mode::Works);
        while tasks.stats().open > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(written(&store).await, [("held".to_owned(), TaskState::Succeeded, None)]);
        let accepted = tasks.track("next").run(&background, |_| done()).await.unwrap();
        assert_eq!(ended(&tasks, accepted.id()).await.state, TaskState::Succeeded);
    }
}

/// The transaction was committed, and nobody was told so.
#[tokio::test(start_paused = true)]
async fn a_record_that_was_written_and_refused_ends_as_not_accepted() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.set(Mode::AnswerLost);
    tasks.track("never").run(&background, |_| done()).await.unwrap_err();
    store.set(Mode::Works);
    while tasks.stats().open > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(written(&store).await, [("never".to_owned(), TaskState::Cancelled, Some(Reason::NotAccepted))]);
    assert_eq!(background.stats().completed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_the_store_does_not_like_holds_up_no_other() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    store.set(Mode::Poisoned);
    let gate = store.hold().await;
    let track = |name: &'static str| {
        let (tasks, background) = (tasks.clone(), background.clone());
        tokio::spawn(async move { tasks.track(name).run(&background, |_| done()).await })
    };
    let first = track("first");
    let others: Vec<_> = ["a", "poison", "b"].map(track).into();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(gate);
    assert!(first.await.unwrap().is_ok());
    let answers: Vec<_> = {
        let mut answers = Vec::new();
        for other in others {
            answers.push(other.await.unwrap());
        }
        answers
    };
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert!(tasks.track("after").run(&background, |_| done()).await.is_ok(), "nor what comes later");
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_says_so_and_is_tried_again() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    store.set(Mode::Unavailable);
    assert!(tasks.start().await.unwrap_err().is_unavailable());
    assert!(try_hold(&tasks, &background).await.is_err_and(|refused| refused.is_store()));
    assert!(tasks.get("00000000000000000000000000000000000z".parse().unwrap()).await.is_err());
    store.set(Mode::Works);
    tasks.start().await.unwrap();
    assert_eq!(tasks.get("00000000000000000000000000000000000z".parse().unwrap()).await.unwrap(), Found::Unknown);
    hold(&tasks, &background).await.release();
}

/// The client hangs up while the record is being written.
#[tokio::test]
async fn a_caller_that_leaves_in_the_midst_leaves_an_abandoned_record_and_no_work() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    let gate = store.hold().await;
    let never = |_| -> Result<(), &str> { panic!("it ran") };
    let mut accepting = Box::pin(tasks.track("left").run(&background, never));
    assert!(futures_util::poll!(&mut accepting).is_pending());
    tokio::task::yield_now().await; // the recorder is at the gate
    drop(accepting);
    assert_eq!((background.stats().reserved, background.stats().skipped), (0, 1));
    drop(gate);
    assert!(tasks.drain(LONG).await.is_clean());
    assert_eq!(written(&store).await, [("left".to_owned(), TaskState::Cancelled, Some(Reason::Abandoned))]);
}

#[tokio::test]
async fn a_caller_that_leaves_before_leaves_nothing() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    tasks.start().await.unwrap();
    let mut accepting = Box::pin(tasks.track("left").run(&background, |_| done()));
    assert!(futures_util::poll!(&mut accepting).is_pending());
    drop(accepting);
    assert!(tasks.drain(LONG).await.is_clean());
    assert_eq!(written(&store).await, []);
}
