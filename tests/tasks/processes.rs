//! One process after another on one store.

use tower_offload::tasks::{MemoryStore, Reason, TaskState, TaskStore, Tasks};

use super::support::{LONG, background, done, ended, hold, record};

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
