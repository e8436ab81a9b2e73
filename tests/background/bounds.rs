use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tower_offload::{Background, ThreadPool, pool::Pool};

use crate::support::{Log, drained, hold, on_threads, panics};

#[tokio::test]
async fn never_more_run_than_there_are_permits_sync_and_async_together_e1() {
    let background = on_threads(8).max_running(3).build();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for task in 0..60 {
        let (now, most) = (now.clone(), most.clone());
        let enter = move || {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            move || now.fetch_sub(1, SeqCst)
        };
        if task % 2 == 0 {
            background.run(move || {
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
    assert_eq!(drained(&background).await.completed, 60);
    assert!((1..=3).contains(&most.load(SeqCst)), "{most:?}");
}

#[tokio::test]
async fn one_too_many_is_refused_at_registration_and_one_that_ended_makes_room_e2_e3() {
    let background = on_threads(1).queue_capacity(2).max_running(1).build();
    let held = hold(&background, "first").await;
    let log = Log::default();
    let ran = log.clone();
    background.run(move || ran.add("second")).unwrap();
    let refused = background.run(|| ()).unwrap_err();
    assert!(refused.is_full() && !refused.is_closed());
    assert!(background.reserve("").is_err());
    assert_eq!(background.stats().rejected, 2);
    assert!(log.entries().is_empty(), "no permit, not run");

    held.release();
    assert_eq!(drained(&background).await.completed, 2);
    assert_eq!(log.entries(), ["second"]);
}

#[tokio::test]
async fn a_pending_task_that_is_cancelled_never_runs_and_leaves_its_place_e4_d13() {
    let background = on_threads(1).queue_capacity(3).max_running(1).build();
    let held = hold(&background, "first").await;
    let alive = Arc::new(());
    let captured = alive.clone();
    let by_handle = background.run(move || panics(&format!("ran with {captured:?}"))).unwrap();
    background.task("by name").run(|| panics("ran")).unwrap();
    assert!(by_handle.cancel() && !by_handle.cancel());
    assert_eq!(Arc::strong_count(&alive), 1, "what it held is dropped at once");
    assert_eq!((background.cancel("by name"), background.cancel("by name")), (1, 0));
    let (after, another) = (background.run(|| ()), background.run(|| ()));
    assert!(after.is_ok() && another.is_ok() && background.run(|| ()).is_err());

    held.release();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (3, 0, 2));
}

#[tokio::test]
async fn a_reservation_holds_its_place_and_gives_it_back_as_a_skip() {
    let background = on_threads(1).queue_capacity(2).build();
    let (spent, dropped) = (background.reserve("spent").unwrap(), background.reserve("dropped").unwrap());
    assert!(background.run(|| ()).unwrap_err().is_full());
    assert_eq!(background.stats().reserved, 2);
    drop(dropped);
    let cancelled = background.reserve("cancelled").unwrap();
    assert_eq!(background.cancel("cancelled"), 1);
    cancelled.run(|| panics("its place was taken away"));
    spent.spawn(async {});
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.cancelled, stats.skipped, stats.reserved), (1, 0, 1, 1, 0));
}

#[tokio::test]
async fn tasks_with_one_permit_run_in_order_d1() {
    let background = on_threads(4).max_running(1).build();
    let log = Log::default();
    for task in 0..20 {
        let ran = log.clone();
        if task % 2 == 0 {
            background.run(move || ran.add(task))
        } else {
            background.spawn(async move { ran.add(task) })
        }
        .unwrap();
    }
    drained(&background).await;
    assert_eq!(log.entries(), (0..20).map(|task| task.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_foreground_pool_is_free_while_every_background_permit_is_taken_e5_e6() {
    let foreground = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let background = Background::builder().max_running(2).build();
    let held = [hold(&background, "a").await, hold(&background, "b").await];
    for _ in 0..100 {
        background.run(|| ()).unwrap();
    }
    assert_eq!(foreground.run(|| 1).await, Ok(1));
    held.into_iter().for_each(crate::support::Held::release);
    assert_eq!(drained(&background).await.completed, 102);
}

#[tokio::test]
async fn permits_never_exceed_what_the_pool_lets_wait() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(2).build().unwrap();
    let background = Background::new(pool);
    for _ in 0..200 {
        background.run(|| ()).unwrap();
    }
    assert_eq!(drained(&background).await.completed, 200);
}
