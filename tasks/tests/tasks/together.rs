//! Many concurrent tasks.

use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{MemoryStore, TaskState, Tasks, store::Found};

use super::support::{Failing, LONG, done};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_tasks_are_found_as_soon_as_they_are_accepted() {
    let pool = ThreadPool::builder().threads(2).build().unwrap();
    let background = Background::builder().pool(pool).max_tasks(10_000).build();
    let tasks = Tasks::new(MemoryStore::with_capacity(20_000));
    let clients: Vec<_> = (0..50)
        .map(|client| {
            let (tasks, background) = (tasks.clone(), background.clone());
            tokio::spawn(async move {
                for number in 0..200_u32 {
                    let work = move |_| Ok::<_, &str>(number);
                    let accepted = match number % 2 {
                        0 => tasks.track("blocking").spawn_blocking(&background, work).await,
                        _ => {
                            tasks.track("async").spawn(&background, move |progress| async move { work(progress) }).await
                        }
                    };
                    let id = accepted.unwrap().id();
                    match tasks.get(id).await.unwrap() {
                        Found::Record(record) if record.state == TaskState::Succeeded => {
                            assert_eq!(record.result.unwrap().parse::<u32>().unwrap(), number);
                        }
                        Found::Record(_) => {}
                        other => panic!("client {client}, task {number}: {other:?}"),
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert!(background.shutdown(LONG).await.is_clean());
    assert!(tasks.shutdown(LONG).await.is_clean());
    assert_eq!((background.stats().completed, tasks.stats().open), (10_000, 0));
}

#[tokio::test]
async fn tasks_that_arrive_during_a_write_share_the_next_batch() {
    let store = Failing::new();
    let tasks = Tasks::new(store.clone());
    tasks.start().await.unwrap();
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let background = Background::builder().pool(pool).max_running(1).build();
    let held = store.hold().await;
    let all: Vec<_> = (0..100)
        .map(|_| {
            let (tasks, background) = (tasks.clone(), background.clone());
            tokio::spawn(async move { tasks.track("x").spawn_blocking(&background, |_| done()).await })
        })
        .collect();
    while background.stats().reserved < 100 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(held);
    for accepted in all {
        assert!(accepted.await.unwrap().is_ok());
    }
    let batches = store.batches();
    assert!(batches.iter().take(2).sum::<usize>() >= 100, "the first task, then all others: {batches:?}");
}
