use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tower_offload::{Background, ThreadPool, background::BackgroundBuilder, pool::Pool};

use crate::support::{Blocked, Log, block, panics, shut_down, with_threads};

#[tokio::test]
async fn closures_and_futures_share_max_running() {
    let background = with_threads(8).max_running(3).build();
    let (running, highest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for task in 0..60 {
        let (running, highest) = (running.clone(), highest.clone());
        let enter = move || {
            highest.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            move || running.fetch_sub(1, SeqCst)
        };
        if task % 2 == 0 {
            background.spawn_blocking(move || {
                let leave = enter();
                std::thread::yield_now();
                leave();
            })
        } else {
            background.spawn(async move {
                let leave = enter();
                tokio::task::yield_now().await;
                leave();
            })
        }
        .unwrap();
    }
    assert_eq!(shut_down(&background).await.completed, 60);
    assert!((1..=3).contains(&highest.load(SeqCst)), "{highest:?}");
}

#[tokio::test]
async fn a_full_background_rejects_tasks_until_one_ends() {
    let background = with_threads(1).max_tasks(2).max_running(1).build();
    let blocked = block(&background, "first").await;
    let log = Log::default();
    let ran = log.clone();
    background.spawn_blocking(move || ran.add("second")).unwrap();
    let rejected = background.spawn_blocking(|| ()).unwrap_err();
    assert!(rejected.is_full() && !rejected.is_closed());
    assert!(background.reserve("").is_err());
    assert_eq!(background.stats().rejected, 2);
    assert!(log.entries().is_empty(), "the second task has no run permit");

    blocked.release();
    assert_eq!(shut_down(&background).await.completed, 2);
    assert_eq!(log.entries(), ["second"]);
}

#[tokio::test]
async fn cancelling_a_queued_task_drops_it_and_makes_room() {
    let background = with_threads(1).max_tasks(3).max_running(1).build();
    let blocked = block(&background, "first").await;
    let alive = Arc::new(());
    let captured = alive.clone();
    let by_handle = background.spawn_blocking(move || panics(&format!("ran with {captured:?}"))).unwrap();
    background.task("by name").spawn_blocking(|| panics("a cancelled task ran")).unwrap();
    assert!(by_handle.cancel() && !by_handle.cancel());
    assert_eq!(Arc::strong_count(&alive), 1, "the closure is dropped at once");
    assert_eq!((background.cancel("by name"), background.cancel("by name")), (1, 0));
    let (second, third) = (background.spawn_blocking(|| ()), background.spawn_blocking(|| ()));
    assert!(second.is_ok() && third.is_ok() && background.spawn_blocking(|| ()).is_err());

    blocked.release();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (3, 0, 2));
}

#[tokio::test]
async fn cancelling_the_empty_name_cancels_nothing() {
    let background = with_threads(1).max_running(1).build();
    let blocked = block(&background, "").await;
    background.spawn_blocking(|| ()).unwrap();
    background.spawn(async {}).unwrap();
    let reserved = background.reserve("").unwrap();
    assert_eq!(background.cancel(""), 0);
    reserved.spawn_blocking(|| ());
    blocked.release();
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (4, 0));
}

#[tokio::test]
async fn a_reservation_counts_until_it_is_submitted_or_dropped() {
    let background = with_threads(1).max_tasks(2).build();
    let (submitted, dropped) = (background.reserve("submitted").unwrap(), background.reserve("dropped").unwrap());
    assert!(background.spawn_blocking(|| ()).unwrap_err().is_full());
    assert_eq!(background.stats().reserved, 2);
    drop(dropped);
    let cancelled = background.reserve("cancelled").unwrap();
    assert_eq!(background.cancel("cancelled"), 1);
    cancelled.spawn_blocking(|| panics("a cancelled task ran"));
    submitted.spawn(async {});
    let stats = shut_down(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.cancelled, stats.skipped, stats.reserved), (1, 0, 1, 1, 0));
}

#[tokio::test]
async fn tasks_run_in_submission_order_with_one_permit() {
    let background = with_threads(4).max_running(1).build();
    let log = Log::default();
    for task in 0..20 {
        let ran = log.clone();
        if task % 2 == 0 {
            background.spawn_blocking(move || ran.add(task))
        } else {
            background.spawn(async move { ran.add(task) })
        }
        .unwrap();
    }
    shut_down(&background).await;
    assert_eq!(log.entries(), (0..20).map(|task| task.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_busy_background_leaves_other_pools_free() {
    let other_pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let background = Background::builder().max_running(2).build();
    let blocked = [block(&background, "a").await, block(&background, "b").await];
    for _ in 0..100 {
        background.spawn_blocking(|| ()).unwrap();
    }
    assert_eq!(other_pool.run(|| 1).await, Ok(1));
    blocked.into_iter().for_each(Blocked::release);
    assert_eq!(shut_down(&background).await.completed, 102);
}

#[tokio::test]
async fn max_running_is_at_most_the_queue_capacity_of_the_pool() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(2).build().unwrap();
    let background = Background::new(pool);
    for _ in 0..200 {
        background.spawn_blocking(|| ()).unwrap();
    }
    assert_eq!(shut_down(&background).await.completed, 200);
}

#[test]
fn a_limit_of_zero_panics_with_its_effect() {
    type Setter = fn(BackgroundBuilder) -> BackgroundBuilder;
    let setters: [(&str, Setter); 3] = [
        ("`max_tasks` must be at least 1: with 0 every task is rejected", |builder| builder.max_tasks(0)),
        ("`max_awaiting_response` must be at least 1: with 0 every such task is rejected", |builder| {
            builder.max_awaiting_response(0)
        }),
        ("`max_running` must be at least 1: with 0 no task ever starts", |builder| builder.max_running(0)),
    ];
    for (message, set) in setters {
        let payload = std::panic::catch_unwind(|| set(Background::builder())).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&message));
    }
}
