//! Order of hooks and tasks, concurrency, and effects of a failure on later tasks.

use tokio::sync::oneshot;
use tower_offload::after_response::End;

use crate::support::{Log, after_shutdown, exchange, logging, on_no_thread, on_threads, panics, responded};

#[tokio::test]
async fn hooks_run_newest_first_then_tasks_oldest_first() {
    let (background, log) = (on_threads(4).build(), Log::default());
    let response = responded(&background, |after| {
        for number in 1..=3 {
            after.spawn_blocking(log.adds(format!("task {number}"))).unwrap();
            let hook = log.adds(format!("hook {number}"));
            after.hook(move |_| hook());
            let task = log.adds(format!("async task {number}"));
            after.spawn(async move { task() }).unwrap();
        }
    });
    drop(response.await);
    assert_eq!(after_shutdown(&background).await.completed, 6);
    let expected = ["hook 3", "hook 2", "hook 1"].into_iter().map(str::to_owned);
    let tasks = (1..=3).flat_map(|number| [format!("task {number}"), format!("async task {number}")]);
    assert_eq!(log.entries(), expected.chain(tasks).collect::<Vec<_>>());
}

/// Runs tasks that end only if `concurrent` of them run at once.
async fn run_together(tasks: usize, concurrent: usize) -> Vec<String> {
    let (background, log) = (on_threads(4).build(), Log::default());
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(concurrent));
    let response = responded(&background, |after| {
        for number in 0..tasks {
            let (barrier, log) = (barrier.clone(), log.clone());
            let work = async move {
                log.add(format!("in {number}"));
                barrier.wait().await;
                log.add(format!("out {number}"));
            };
            after.task("").concurrent(concurrent).spawn(work).unwrap();
        }
    });
    drop(response.await);
    assert_eq!(after_shutdown(&background).await.completed, tasks as u64);
    log.entries()
}

#[tokio::test]
async fn tasks_run_within_their_concurrency_limit() {
    assert_eq!(run_together(2, 1).await, ["in 0", "out 0", "in 1", "out 1"]);
    let entries = run_together(4, 2).await;
    // Two threads, of which either may be faster.
    let mut first = entries[..2].to_vec();
    first.sort_unstable();
    assert_eq!(first, ["in 0", "in 1"]);
    let most = entries.iter().scan(0_i32, |running, entry| {
        *running += if entry.starts_with("in") { 1 } else { -1 };
        Some(*running)
    });
    assert_eq!(most.max(), Some(2));
    assert_eq!(run_together(4, 4).await.iter().filter(|entry| entry.starts_with("in")).count(), 4);
}

#[tokio::test]
async fn failed_task_is_reported_once_and_later_tasks_run() {
    let (background, failures) = logging(on_threads(2));
    let log = Log::default();
    let response = responded(&background, |after| {
        after.task("error").spawn_blocking(|| Err("no")).unwrap();
        after.spawn_blocking(log.adds("between")).unwrap();
        after.task("panic").spawn(async { panics("on purpose") }).unwrap();
        after.spawn_blocking(log.adds("last")).unwrap();
    });
    drop(response.await);
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.skipped), (2, 2, 0));
    assert_eq!(log.entries(), ["between", "last"]);
    assert_eq!(
        failures.entries(),
        ["background task 1 `error` failed: no", "background task 3 `panic` panicked: on purpose"]
    );
}

#[tokio::test]
async fn stop_on_error_skips_later_tasks() {
    for failure in ["error", "panic", "timeout", "blocking timeout"] {
        let (background, failures) = logging(on_threads(2));
        let (log, (release, released)) = (Log::default(), std::sync::mpsc::channel::<()>());
        let response = responded(&background, |after| {
            after.spawn_blocking(log.adds("before")).unwrap();
            let task = after.task(failure).stop_on_error();
            let limited = after.task(failure).stop_on_error().timeout(std::time::Duration::from_millis(1));
            match failure {
                "error" => task.spawn_blocking(|| Err("no")),
                "panic" => task.spawn_blocking(|| panics("on purpose")),
                "timeout" => limited.spawn(std::future::pending::<()>()),
                _ => limited.spawn_blocking(move || released.recv_timeout(crate::support::LONG).unwrap_or_default()),
            }
            .unwrap();
            after.spawn_blocking(log.adds("after")).unwrap();
            after.task("").always().spawn(async { panics("ran") }).unwrap();
        });
        drop(response.await);
        while background.stats().skipped < 2 {
            tokio::task::yield_now().await;
        }
        drop(release);
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.failed, stats.skipped), (1, 1, 2), "{failure}");
        assert_eq!((log.entries(), failures.entries().len()), (vec!["before".to_owned()], 1));
    }
}

#[tokio::test]
async fn stop_on_error_skips_tasks_registered_later() {
    let background = on_no_thread();
    let mut kept = None;
    exchange(&background, 200, End::Complete, |after| {
        kept = Some(after.clone());
        after.task("").stop_on_error().spawn_blocking(|| Err("no")).unwrap();
    })
    .await;
    while background.stats().failed == 0 {
        tokio::task::yield_now().await;
    }
    kept.unwrap().task("late").always().spawn_blocking(|| panics("ran")).unwrap();
    assert_eq!(after_shutdown(&background).await.skipped, 1);
}

#[tokio::test]
async fn stop_on_error_ignores_success_and_cancellation() {
    let (background, log) = (on_no_thread(), Log::default());
    let response = responded(&background, |after| {
        after.task("fine").stop_on_error().spawn_blocking(|| ()).unwrap();
        assert!(after.task("gone").stop_on_error().spawn_blocking(|| panics("ran")).unwrap().cancel());
        after.spawn_blocking(log.adds("last")).unwrap();
    });
    drop(response.await);
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (2, 1));
    assert_eq!(log.entries(), ["last"]);
}

#[tokio::test]
async fn tasks_of_two_requests_overlap() {
    let background = on_threads(1).build();
    let ((one, first), (two, second)) = (oneshot::channel::<()>(), oneshot::channel::<()>());
    let one_waits = async move { first.await.unwrap() };
    let two_waits = async move {
        one.send(()).unwrap(); // received only if the other task starts before this one ends
        second.await.unwrap();
    };
    let (a, b) = tokio::join!(
        responded(&background, |after| drop(after.spawn(one_waits).unwrap())),
        responded(&background, |after| drop(after.spawn(two_waits).unwrap())),
    );
    assert_eq!(background.stats().awaiting_response, 2, "both responses are open");
    drop((a, b));
    two.send(()).unwrap();
    assert_eq!(after_shutdown(&background).await.completed, 2);
}

#[tokio::test]
async fn clones_of_a_handle_register_into_one_list() {
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 200, End::Complete, |after| {
        let (extractor, other) = (after.clone(), after.clone());
        extractor.spawn_blocking(log.adds("extractor")).unwrap();
        other.spawn_blocking(log.adds("other extractor")).unwrap();
        after.spawn_blocking(log.adds("handler")).unwrap();
    })
    .await;
    after_shutdown(&background).await;
    assert_eq!(log.entries(), ["extractor", "other extractor", "handler"]);
}
