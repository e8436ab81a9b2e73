//! Shutdown: open tasks are written or reported.

use std::{convert::Infallible, future, sync::Arc, time::Duration};

use tower_offload_tasks::{MemoryStore, Reason, TaskState, TaskStore, Tasks};

use super::support::{Failing, LONG, Mode, SHORT, background, done, ended, hold, in_memory, record};

#[tokio::test]
async fn task_that_ends_in_time_is_written_and_no_more_are_accepted() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let id = held.id;
    let report = tokio::spawn({
        let (tasks, background) = (tasks.clone(), background.clone());
        async move {
            background.shutdown(LONG).await;
            tasks.shutdown(LONG).await
        }
    });
    held.release();
    assert!(report.await.unwrap().is_clean());
    assert!(tasks.is_closed());
    assert_eq!(store.get(id).await.unwrap().into_record().unwrap().state, TaskState::Succeeded);
    let late = tasks.track("late").spawn_blocking(&super::support::background(), |_| done()).await.unwrap_err();
    assert!(late.is_closed());
    assert_eq!(record(&tasks, id).await.state, TaskState::Succeeded, "records can still be read");
    assert!(tasks.shutdown(LONG).await.is_clean(), "a second call");
}

#[tokio::test]
async fn task_cut_off_by_the_background_is_written_as_cancelled() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let pending = |_| future::pending::<Result<(), Infallible>>();
    let spawned = tasks.track("x").spawn(&background, pending).await.unwrap();
    let report = background.shutdown(Duration::ZERO).await;
    assert!(!report.is_clean());
    assert!(tasks.shutdown(LONG).await.is_clean());
    for id in [held.id, spawned.id()] {
        let record = store.get(id).await.unwrap().into_record().unwrap();
        assert_eq!((record.state, record.reason), (TaskState::Cancelled, Some(Reason::Shutdown)));
    }
}

#[tokio::test]
async fn task_that_does_not_end_in_time_is_reported() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    assert_eq!(tasks.shutdown(SHORT).await.unwritten, [held.id]);
    held.release();
    assert!(tasks.shutdown(LONG).await.is_clean());
}

#[tokio::test]
async fn task_that_the_store_does_not_accept_is_reported() {
    let store = Failing::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let id = held.id;
    store.set(Mode::Unavailable);
    held.release();
    assert_eq!(ended(&tasks, id).await.state, TaskState::Succeeded);
    assert_eq!(tasks.shutdown(SHORT).await.unwritten, [id]);
    store.set(Mode::Works);
    assert!(tasks.shutdown(LONG).await.is_clean());
}

#[tokio::test]
async fn shutdown_of_unused_tasks_does_not_use_the_store() {
    let store = Failing::new();
    store.set(Mode::Panics);
    assert!(Tasks::new(store).shutdown(LONG).await.is_clean());
}

#[tokio::test]
async fn tasks_are_written_after_the_last_handle_is_dropped() {
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let held = hold(&tasks, &background).await;
    let id = held.id;
    let mut subscription = tasks.subscribe(id).await.unwrap().unwrap();
    drop(tasks);
    held.release();
    while subscription.changed().await.unwrap().is_some() {}
    assert_eq!(subscription.record().state, TaskState::Succeeded);
    while store.get(id).await.unwrap().into_record().unwrap().state != TaskState::Succeeded {
        tokio::task::yield_now().await;
    }
}

#[test]
fn ended_task_does_not_keep_its_store_alive() {
    let (store, background) = (Arc::new(MemoryStore::new()), background());
    let weak = Arc::downgrade(&store);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = runtime.block_on(async { hold(&Tasks::new(store), &background).await });
    drop(runtime); // and with it the writer task
    held.release();
    let deadline = tokio::time::Instant::now() + LONG;
    while weak.upgrade().is_some() {
        assert!(tokio::time::Instant::now() < deadline, "the store is not released");
        std::thread::sleep(SHORT);
    }
}

/// The task runs on another runtime, which can write its record.
#[test]
fn task_is_written_after_the_runtime_of_the_writer_ended() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let store = MemoryStore::new();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    first.block_on(tasks.start()).unwrap();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (enter, entered) = tokio::sync::oneshot::channel();
    let work = move |_| async move {
        enter.send(()).unwrap();
        let _ = released.await;
        done()
    };
    let id = second.block_on(async { tasks.track("x").spawn(&background, work).await.unwrap().id() });
    second.block_on(entered).unwrap();
    let state = || second.block_on(store.get(id)).unwrap().into_record().unwrap().state;
    while state() != TaskState::Running {
        std::thread::sleep(SHORT);
    }
    drop(first);
    drop(tasks);
    release.send(()).unwrap();
    let deadline = tokio::time::Instant::now() + LONG;
    while state() != TaskState::Succeeded {
        assert!(tokio::time::Instant::now() < deadline, "the final record is not written");
        std::thread::sleep(SHORT);
    }
}

/// Callers on another runtime get a reply at any state of the writer.
#[test]
fn callers_get_a_reply_when_the_runtime_of_the_writer_ends() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let second = runtime();
    for round in 0..100_u64 {
        let first = runtime();
        let (tasks, background) = (Tasks::new(Failing::new()), background());
        first.block_on(tasks.start()).unwrap();
        let callers: Vec<_> = (0..20)
            .map(|_| {
                let (tasks, background) = (tasks.clone(), background.clone());
                second.spawn(async move {
                    let accepted = tasks.track("x").spawn(&background, |_| async { done() }).await;
                    let id = accepted.map_or("00000000000000000000000000000000000z".parse().unwrap(), |x| x.id());
                    let _ = tasks.cancel(id).await;
                })
            })
            .collect();
        // There is no point that a test could wait for, so each round ends it at another time.
        std::thread::sleep(Duration::from_micros(round * 20));
        drop(first);
        for caller in callers {
            let caller = async { tokio::time::timeout(LONG, caller).await };
            second.block_on(caller).expect("a caller waits").unwrap();
        }
        second.block_on(background.shutdown(LONG));
        assert!(second.block_on(tasks.shutdown(LONG)).is_clean());
    }
}
