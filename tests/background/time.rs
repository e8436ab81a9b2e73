use std::time::Duration;

use tokio::sync::oneshot;
use tower_offload::background::cancelled;

use crate::support::{LONG, logging, on_threads, panics};

const LIMIT: Duration = Duration::from_millis(5);

#[tokio::test]
async fn a_timeout_drops_that_async_task_and_no_other_d10() {
    let (background, failures) = logging(on_threads(1));
    let (finish, finished) = oneshot::channel::<()>();
    let sibling = background.spawn(async move { finished.await.map_err(drop).unwrap() });
    let (dropped, drops) = oneshot::channel::<()>();
    let late = async move {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    };
    background.task("late").timeout(LIMIT).spawn(late).unwrap();
    background.task("in time").timeout(LONG).run(|| ()).unwrap();
    assert!(drops.await.is_err());
    finish.send(()).unwrap();
    assert!(sibling.is_ok());
    background.drain(LONG).await;
    assert_eq!((background.stats().completed, background.stats().failed), (2, 1));
    assert_eq!(failures.entries(), ["background task 2 `late` took longer than its limit of 5ms"]);
}

#[tokio::test]
async fn a_closure_past_its_deadline_is_reported_as_running_once_and_keeps_its_permit_e9() {
    let (report, reported) = std::sync::mpsc::channel();
    let builder = on_threads(1).max_running(1).on_failure(move |failure| {
        report.send((failure.is_timeout(), failure.is_still_running(), failure.to_string())).unwrap();
    });
    let background = builder.build();
    let (proceed, proceeds) = std::sync::mpsc::channel::<()>();
    let (saw, seen) = oneshot::channel();
    let stuck = background.task("stuck").timeout(LIMIT).run(move || {
        while !cancelled() {
            std::thread::yield_now();
        }
        saw.send(()).unwrap();
        let _ = proceeds.recv();
    });
    background.run(|| ()).unwrap();
    seen.await.unwrap();
    let text = "background task 1 `stuck` still runs after its limit of 5ms".to_owned();
    assert_eq!(reported.try_recv(), Ok((true, true, text)));
    let stats = background.stats();
    assert_eq!((stats.running, stats.queued, stats.failed), (1, 1, 0), "it runs, whatever was reported");

    drop((proceed, stuck));
    background.drain(LONG).await;
    let stats = background.stats();
    assert_eq!((stats.completed, stats.failed), (1, 1));
    assert!(reported.try_recv().is_err());
}

#[tokio::test]
async fn a_timeout_of_sync_work_leaves_its_siblings_alone_d10() {
    let (background, failures) = logging(on_threads(2).max_running(2));
    let (proceed, proceeds) = std::sync::mpsc::channel::<()>();
    let (saw, seen) = oneshot::channel();
    background
        .task("late")
        .timeout(LIMIT)
        .run(move || {
            while !cancelled() {
                std::thread::yield_now();
            }
            saw.send(()).unwrap();
            let _ = proceeds.recv();
        })
        .unwrap();
    seen.await.unwrap();
    for _ in 0..3 {
        let (tell, told) = oneshot::channel();
        background.task("sibling").timeout(LONG).run(move || tell.send(cancelled()).unwrap()).unwrap();
        assert!(!told.await.unwrap(), "while the other still runs");
    }
    drop(proceed);
    background.drain(LONG).await;
    assert_eq!((background.stats().completed, background.stats().failed), (3, 1));
    assert_eq!(failures.entries(), ["background task 1 `late` still runs after its limit of 5ms"]);
}

#[tokio::test]
async fn what_fails_after_its_time_has_run_out_is_reported_once_d7() {
    let (background, failures) = logging(on_threads(2));
    let stop = || {
        while !cancelled() {
            std::thread::yield_now();
        }
    };
    background
        .task("errs")
        .timeout(LIMIT)
        .run(move || {
            stop();
            Err("no")
        })
        .unwrap();
    background
        .task("panics")
        .timeout(LIMIT)
        .run(move || {
            stop();
            panics("late");
        })
        .unwrap();
    background.drain(LONG).await;
    let mut reports = failures.entries();
    reports.sort_unstable();
    let expected = ["background task 1 `errs` still", "background task 2 `panics` still"];
    assert!(reports.len() == 2 && reports.iter().zip(expected).all(|(report, start)| report.starts_with(start)));
    assert_eq!(background.stats().failed, 2);
}

#[test]
fn outside_of_any_runtime_a_task_that_took_too_long_is_reported_at_its_end() {
    let (background, failures) = logging(on_threads(1));
    // The work itself: it has to take some time.
    background.task("late").timeout(Duration::ZERO).run(|| std::thread::sleep(Duration::from_millis(1))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(background.drain(LONG));
    assert_eq!(failures.entries(), ["background task 1 `late` took longer than its limit of 0ns"]);
}
