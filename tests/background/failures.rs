use tower_offload::{Background, ThreadPool, pool::Pool};

use crate::support::{LONG, Log, drained, logging, on_threads, panics};

#[tokio::test]
async fn a_task_that_fails_or_panics_is_reported_once_and_the_rest_run_d4_d7() {
    let (background, log) = logging(on_threads(1).max_running(1));
    background.task("error").run(|| Err("no")).unwrap();
    background.task("panic").run(|| panics("in sync work")).unwrap();
    background.task("async error").spawn(async { Err::<(), _>("no") }).unwrap();
    background.task("async panic").spawn(async { panics("in async work") }).unwrap();
    background.run(|| ()).unwrap();
    background.spawn(async { Ok::<(), String>(()) }).unwrap();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (2, 4, 0));
    assert_eq!(
        log.entries(),
        [
            "background task 1 `error` failed: no",
            "background task 2 `panic` panicked: in sync work",
            "background task 3 `async error` failed: no",
            "background task 4 `async panic` panicked: in async work",
        ]
    );
}

#[tokio::test]
async fn a_sink_that_panics_harms_nobody_d6_d9() {
    let log = Log::default();
    let seen = log.clone();
    let builder = on_threads(1).max_running(1).on_failure(move |failure| {
        seen.add(failure.name());
        assert!(failure.is_panic() && !failure.is_timeout() && !failure.is_lost());
        panic!("in the sink");
    });
    let background = builder.build();
    background.task("a").run(|| panics("")).unwrap();
    background.task("b").spawn(async { panics("") }).unwrap();
    background.run(|| ()).unwrap();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 2));
    assert_eq!(log.entries(), ["a", "b"]);
}

#[tokio::test]
async fn a_panic_in_what_a_task_drops_is_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("in a drop");
            }
        }
    }
    let (background, log) = logging(on_threads(1).max_running(1));
    let bomb = Bomb;
    background.task("closure").run(move || drop(bomb)).unwrap();
    let bomb = Bomb;
    background
        .task("future")
        .spawn(async move {
            let _bomb = &bomb;
            tokio::task::yield_now().await;
        })
        .unwrap();
    let held = crate::support::hold(&background, "held").await;
    let bomb = Bomb;
    let pending = background.run(move || drop(bomb)).unwrap();
    assert!(pending.cancel());
    held.release();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 2));
    assert_eq!(log.entries().len(), 2);
}

#[tokio::test]
async fn a_pool_that_is_shut_down_is_a_reported_failure() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let (background, log) = logging(Background::builder().pool(pool.clone()));
    pool.shutdown(LONG).await;
    background.task("late").run(|| panics("ran")).unwrap();
    background.spawn(async {}).unwrap();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 1));
    assert_eq!(log.entries(), ["background task 1 `late` was refused by its pool: the pool is shut down"]);
}
