//! In which order hooks are called and tasks run, and what one means for the others.

use tokio::sync::oneshot;
use tower_offload::after_response::End;

use crate::support::{Log, drained, exchange, logging, on_no_thread, on_threads, panics, responded};

#[tokio::test]
async fn hooks_come_newest_first_and_before_the_tasks_that_come_oldest_first_a1_a2_d1_d3() {
    let (background, log) = (on_threads(4).build(), Log::default());
    let response = responded(&background, |after| {
        for number in 1..=3 {
            after.run(log.adds(format!("task {number}"))).unwrap();
            let hook = log.adds(format!("hook {number}"));
            after.hook(move |_| hook());
            let task = log.adds(format!("async task {number}"));
            after.spawn(async move { task() }).unwrap();
        }
    });
    drop(response.await);
    assert_eq!(drained(&background).await.completed, 6);
    let expected = ["hook 3", "hook 2", "hook 1"].into_iter().map(str::to_owned);
    let tasks = (1..=3).flat_map(|number| [format!("task {number}"), format!("async task {number}")]);
    assert_eq!(log.entries(), expected.chain(tasks).collect::<Vec<_>>());
}

/// Tasks that wait for one another: they end only if so many run at once.
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
    assert_eq!(drained(&background).await.completed, tasks as u64);
    log.entries()
}

#[tokio::test]
async fn so_many_run_at_once_as_they_allow_and_no_more_d2() {
    assert_eq!(run_together(2, 1).await, ["in 0", "out 0", "in 1", "out 1"]);
    let entries = run_together(4, 2).await;
    assert_eq!(&entries[..2], ["in 0", "in 1"]);
    let most = entries.iter().scan(0_i32, |running, entry| {
        *running += if entry.starts_with("in") { 1 } else { -1 };
        Some(*running)
    });
    assert_eq!(most.max(), Some(2));
    assert_eq!(run_together(4, 4).await.iter().filter(|entry| entry.starts_with("in")).count(), 4);
}

#[tokio::test]
async fn one_that_fails_or_panics_is_reported_once_and_the_rest_run_d4_d7_d9() {
    let (background, failures) = logging(on_threads(2));
    let log = Log::default();
    let response = responded(&background, |after| {
        after.task("error").run(|| Err("no")).unwrap();
        after.run(log.adds("between")).unwrap();
        after.task("panic").spawn(async { panics("on purpose") }).unwrap();
        after.run(log.adds("last")).unwrap();
    });
    drop(response.await);
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.skipped), (2, 2, 0));
    assert_eq!(log.entries(), ["between", "last"]);
    assert_eq!(
        failures.entries(),
        ["background task 1 `error` failed: no", "background task 3 `panic` panicked: on purpose"]
    );
}

#[tokio::test]
async fn a_failure_ends_the_rest_if_the_task_says_so_d4() {
    for failure in ["error", "panic", "timeout", "blocking timeout"] {
        let (background, failures) = logging(on_threads(2));
        let (log, (release, released)) = (Log::default(), std::sync::mpsc::channel::<()>());
        let response = responded(&background, |after| {
            after.run(log.adds("before")).unwrap();
            let task = after.task(failure).stop_on_error();
            let limited = after.task(failure).stop_on_error().timeout(std::time::Duration::from_millis(1));
            match failure {
                "error" => task.run(|| Err("no")),
                "panic" => task.run(|| panics("on purpose")),
                "timeout" => limited.spawn(std::future::pending::<()>()),
                _ => limited.run(move || released.recv_timeout(crate::support::LONG).unwrap_or_default()),
            }
            .unwrap();
            after.run(log.adds("after")).unwrap();
            after.task("").always().spawn(async { panics("ran") }).unwrap();
        });
        drop(response.await);
        while background.stats().skipped < 2 {
            tokio::task::yield_now().await;
        }
        drop(release);
        let stats = drained(&background).await;
        assert_eq!((stats.completed, stats.failed, stats.skipped), (1, 1, 2), "{failure}");
        assert_eq!((log.entries(), failures.entries().len()), (vec!["before".to_owned()], 1));
    }
}

#[tokio::test]
async fn what_is_registered_after_such_a_failure_is_skipped_too() {
    let background = on_no_thread();
    let mut kept = None;
    exchange(&background, 200, End::Complete, |after| {
        kept = Some(after.clone());
        after.task("").stop_on_error().run(|| Err("no")).unwrap();
    })
    .await;
    while background.stats().failed == 0 {
        tokio::task::yield_now().await;
    }
    kept.unwrap().task("late").always().run(|| panics("ran")).unwrap();
    assert_eq!(drained(&background).await.skipped, 1);
}

#[tokio::test]
async fn one_that_is_cancelled_or_succeeds_stops_nobody() {
    let (background, log) = (on_no_thread(), Log::default());
    let response = responded(&background, |after| {
        after.task("fine").stop_on_error().run(|| ()).unwrap();
        assert!(after.task("gone").stop_on_error().run(|| panics("ran")).unwrap().cancel());
        after.run(log.adds("last")).unwrap();
    });
    drop(response.await);
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (2, 1));
    assert_eq!(log.entries(), ["last"]);
}

/// A10: neither is in the other's queue.
#[tokio::test]
async fn the_tasks_of_two_requests_overlap_and_each_begins_when_its_own_body_ended_a10() {
    let background = on_no_thread();
    let ((one, first), (two, second)) = (oneshot::channel::<()>(), oneshot::channel::<()>());
    let one_waits = async move { first.await.unwrap() };
    let two_waits = async move {
        one.send(()).unwrap(); // only if the other has begun or will begin without this one's end
        second.await.unwrap();
    };
    let (a, b) = tokio::join!(
        responded(&background, |after| drop(after.spawn(one_waits).unwrap())),
        responded(&background, |after| drop(after.spawn(two_waits).unwrap())),
    );
    assert_eq!(background.stats().reserved, 2, "both bodies are open");
    drop((a, b));
    two.send(()).unwrap();
    assert_eq!(drained(&background).await.completed, 2);
}

#[tokio::test]
async fn what_several_parts_of_a_request_register_is_one_set_d11() {
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 200, End::Complete, |after| {
        let (extractor, other) = (after.clone(), after.clone());
        extractor.run(log.adds("extractor")).unwrap();
        other.run(log.adds("other extractor")).unwrap();
        after.run(log.adds("handler")).unwrap();
    })
    .await;
    drained(&background).await;
    assert_eq!(log.entries(), ["extractor", "other extractor", "handler"]);
}
