//! The clock of the machine is set while a store for one process is in use.

use std::time::Duration;

use tower_offload_tasks::{MemoryStore, Retention, SqlStore, TaskStore, Timestamp, store::Found};

use super::{
    databases::OnFile,
    store_suite::{accept, begin, found, id, now, running, succeeded, update},
};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// Stores records that ended at these times, in this order. The first has the number 1.
async fn store_ended(store: &impl TaskStore, times: &[Timestamp]) {
    let epoch = begin(store).await;
    for (number, at) in (1..).zip(times) {
        store.write(epoch, &[accept(&running(number))]).await.unwrap();
        store.write(epoch, &[update(&succeeded(number, *at))]).await.unwrap();
    }
}

async fn kept(store: &impl TaskStore, numbers: std::ops::RangeInclusive<u16>) -> Vec<u16> {
    let mut kept = Vec::new();
    for number in numbers {
        kept.extend(found(store, number).await.map(|_| number));
    }
    kept
}

async fn set_back(store: &impl TaskStore) {
    let (before, after) = (now(), now().before(2 * HOUR));
    let times = [before, before.after(SECOND), after, after.after(SECOND), after.after(2 * SECOND)];
    store_ended(store, &times).await;
    let swept = store.sweep(after.after(3 * SECOND), &Retention::default().max_records(4)).await.unwrap();
    assert_eq!((swept.evicted, kept(store, 1..=5).await), (1, vec![2, 3, 4, 5]));
    let swept = store.sweep(after.after(3 * SECOND), &Retention::default().max_records(2)).await.unwrap();
    assert_eq!((swept.evicted, kept(store, 1..=5).await), (2, vec![4, 5]));
    for number in 1..=3 {
        assert_eq!(store.get(id(number)).await.unwrap(), Found::Evicted { owner: None }, "a tombstone");
    }
}

#[tokio::test]
async fn clock_set_back_evicts_earlier_records_first() {
    set_back(&MemoryStore::new()).await;
    let file = OnFile::fresh();
    set_back(&SqlStore::open(&file.url()).await.unwrap()).await;
}

async fn set_forward(store: &impl TaskStore) {
    let before = now();
    store_ended(store, &[before.before(23 * HOUR), before.before(HOUR), before]).await;
    let after = before.after(2 * HOUR);
    let swept = store.sweep(after, &Retention::default()).await.unwrap();
    assert_eq!((swept.evicted, kept(store, 1..=3).await), (1, vec![2, 3]), "records are two hours older");
}

#[tokio::test]
async fn clock_set_forward_evicts_as_if_the_time_had_passed() {
    set_forward(&MemoryStore::new()).await;
    let file = OnFile::fresh();
    set_forward(&SqlStore::open(&file.url()).await.unwrap()).await;
}

async fn ages(store: &impl TaskStore) {
    let (before, after) = (now(), now().before(2 * HOUR));
    store_ended(store, &[before, after]).await;
    for (age, expected) in [(23, vec![1, 2]), (25, vec![1]), (27, vec![])] {
        store.sweep(after.after(age * HOUR), &Retention::default()).await.unwrap();
        assert_eq!(kept(store, 1..=2).await, expected, "after {age} hours");
    }
}

#[tokio::test]
async fn clock_set_back_keeps_records_longer_by_the_difference() {
    ages(&MemoryStore::new()).await;
    let file = OnFile::fresh();
    ages(&SqlStore::open(&file.url()).await.unwrap()).await;
}

/// A full store makes room for new records itself.
#[tokio::test]
async fn full_store_keeps_new_results_after_the_clock_was_set_back() {
    let store = MemoryStore::with_capacity(3);
    let (before, after) = (now(), now().before(2 * HOUR));
    store_ended(&store, &[before, before, before]).await;
    let epoch = begin(&store).await;
    for number in 4..=6 {
        let (mut running, mut ended) = (running(number), succeeded(number, after));
        (running.created_at, ended.created_at) = (after, after);
        store.write(epoch, &[accept(&running)]).await.unwrap();
        store.write(epoch, &[update(&ended)]).await.unwrap();
    }
    assert_eq!(kept(&store, 1..=6).await, [4, 5, 6]);
}
