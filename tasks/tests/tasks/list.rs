//! Lists of tasks, and eviction from them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use tower_offload_tasks::{
    MemoryStore, Retention, TaskState, Tasks,
    store::{Filter, Found, Page},
};

use super::support::{background, done, ended, hold, in_memory};

#[tokio::test]
async fn list_has_the_latest_states() {
    let (tasks, background) = (in_memory(), background());
    let finished = tasks.track("finished").owner("ann").spawn_blocking(&background, |_| done()).await.unwrap();
    ended(&tasks, finished.id()).await;
    let held = hold(&tasks, &background).await;
    let all = tasks.list(&Filter::default(), Page::default()).await.unwrap();
    let states: Vec<_> = all.records.iter().map(|record| record.state).collect();
    assert_eq!(states.len(), 2);
    assert!(states.contains(&TaskState::Running) && states.contains(&TaskState::Succeeded));
    let owned_by_ann = tasks.list(&Filter::default().owner("ann"), Page::default()).await.unwrap();
    assert_eq!(owned_by_ann.records.iter().map(|record| record.id).collect::<Vec<_>>(), [finished.id()]);
    held.release();
}

#[tokio::test]
async fn record_is_evicted_at_its_age_and_leaves_a_tombstone() {
    let seconds = Arc::new(AtomicU64::new(1_000_000));
    let clock = {
        let seconds = seconds.clone();
        move || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.load(SeqCst))
    };
    let retention = Retention::default().max_age(Duration::from_secs(60)).tombstone_ttl(Duration::from_secs(600));
    let open = |store: &MemoryStore| Tasks::builder(store.clone()).retention(retention).clock(clock.clone()).build();
    let (store, background) = (MemoryStore::new(), background());
    let tasks = open(&store);
    let finished = tasks.track("finished").owner("ann").spawn_blocking(&background, |_| done()).await.unwrap().id();
    ended(&tasks, finished).await;
    tasks.shutdown(super::support::LONG).await;
    let found_after = async |passed| {
        seconds.fetch_add(passed, SeqCst);
        let tasks = open(&store); // a new epoch sweeps
        tasks.start().await.unwrap();
        tasks.shutdown(super::support::LONG).await;
        tasks.get(finished).await.unwrap()
    };
    assert!(matches!(found_after(59).await, Found::Record(_)));
    assert_eq!(found_after(2).await, Found::Evicted { owner: Some("ann".to_owned()) });
    assert_eq!(found_after(599).await, Found::Evicted { owner: Some("ann".to_owned()) });
    assert_eq!(found_after(1).await, Found::Unknown);
}

#[tokio::test]
async fn store_full_of_unfinished_tasks_rejects_new_ones() {
    let (tasks, background) = (Tasks::new(MemoryStore::with_capacity(1)), background());
    let held = hold(&tasks, &background).await;
    let error = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap_err();
    assert!(error.is_full() && error.is_store());
    assert_eq!(super::support::record(&tasks, held.id).await.state, TaskState::Running);
    let id = held.id;
    held.release();
    ended(&tasks, id).await;
    while tasks.stats().open > 0 {
        tokio::task::yield_now().await;
    }
    let next = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
    ended(&tasks, next.id()).await;
    assert_eq!(tasks.get(id).await.unwrap(), Found::Evicted { owner: None });
}
