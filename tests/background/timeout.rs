use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, advance},
};
use tower_offload::background::cancelled;

use crate::support::{LONG, current_thread_runtime, panics, with_failure_log, with_threads};

/// Long enough for a closure to begin on a busy machine. One that has not begun by then never runs.
const TIMEOUT: Duration = Duration::from_millis(200);

fn spin_until_cancelled() {
    while !cancelled() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_timeout_drops_its_future_and_no_other_task() {
    let (background, failures) = with_failure_log(with_threads(1));
    let (finish, finished) = oneshot::channel::<()>();
    let sibling = background.spawn(async move { finished.await.map_err(drop).unwrap() });
    let (sender, dropped) = oneshot::channel::<()>();
    let late = async move {
        let _sender = sender;
        std::future::pending::<()>().await;
    };
    background.task("late").timeout(TIMEOUT).spawn(late).unwrap();
    background.task("in time").timeout(LONG).spawn_blocking(|| ()).unwrap();
    assert!(dropped.await.is_err());
    finish.send(()).unwrap();
    assert!(sibling.is_ok());
    background.shutdown(LONG).await;
    assert_eq!((background.stats().completed, background.stats().failed), (2, 1));
    assert_eq!(failures.entries(), ["background task 2 `late` exceeded its timeout of 200ms"]);
}

#[tokio::test]
async fn a_closure_past_its_timeout_is_reported_and_keeps_its_permit() {
    let (sender, reports) = mpsc::channel();
    let builder = with_threads(1).max_running(1).on_failure(move |failure| {
        sender.send((failure.is_timeout(), failure.is_still_running(), failure.to_string())).unwrap();
    });
    let background = builder.build();
    let (proceed, proceeds) = mpsc::channel::<()>();
    let (saw_cancelled, cancellation) = oneshot::channel();
    let stuck = background.task("stuck").timeout(TIMEOUT).spawn_blocking(move || {
        spin_until_cancelled();
        saw_cancelled.send(()).unwrap();
        let _ = proceeds.recv();
    });
    background.spawn_blocking(|| ()).unwrap();
    cancellation.await.unwrap();
    let text = "background task 1 `stuck` still runs after its timeout of 200ms".to_owned();
    assert_eq!(reports.try_recv(), Ok((true, true, text)));
    let stats = background.stats();
    assert_eq!((stats.running, stats.queued, stats.failed), (1, 1, 0), "the closure still runs");

    drop((proceed, stuck));
    background.shutdown(LONG).await;
    let stats = background.stats();
    assert_eq!((stats.completed, stats.failed), (1, 1));
    assert!(reports.try_recv().is_err(), "it is reported once");
}

#[tokio::test]
async fn a_timed_out_closure_does_not_cancel_its_siblings() {
    let (background, failures) = with_failure_log(with_threads(2).max_running(2));
    let (proceed, proceeds) = mpsc::channel::<()>();
    let (saw_cancelled, cancellation) = oneshot::channel();
    background
        .task("late")
        .timeout(TIMEOUT)
        .spawn_blocking(move || {
            spin_until_cancelled();
            saw_cancelled.send(()).unwrap();
            let _ = proceeds.recv();
        })
        .unwrap();
    cancellation.await.unwrap();
    for _ in 0..3 {
        let (sender, is_cancelled) = oneshot::channel();
        let sibling = background.task("sibling").timeout(LONG);
        sibling.spawn_blocking(move || sender.send(cancelled()).unwrap()).unwrap();
        assert!(!is_cancelled.await.unwrap());
    }
    drop(proceed);
    background.shutdown(LONG).await;
    assert_eq!((background.stats().completed, background.stats().failed), (3, 1));
    assert_eq!(failures.entries(), ["background task 1 `late` still runs after its timeout of 200ms"]);
}

#[tokio::test]
async fn a_failure_after_the_timeout_is_not_reported_again() {
    let (background, failures) = with_failure_log(with_threads(2));
    let returns_error = || {
        spin_until_cancelled();
        Err("no")
    };
    background.task("errs").timeout(TIMEOUT).spawn_blocking(returns_error).unwrap();
    let panics_late = || {
        spin_until_cancelled();
        panics("late");
    };
    background.task("panics").timeout(TIMEOUT).spawn_blocking(panics_late).unwrap();
    background.shutdown(LONG).await;
    let mut reports = failures.entries();
    reports.sort_unstable();
    let expected = ["background task 1 `errs` still", "background task 2 `panics` still"];
    assert!(reports.len() == 2 && reports.iter().zip(expected).all(|(report, start)| report.starts_with(start)));
    assert_eq!(background.stats().failed, 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_counts_from_the_start_of_the_task() {
    let (reported, report) = oneshot::channel();
    let reported = Mutex::new(Some(reported));
    let builder = with_threads(1).on_failure(move |_| {
        let reported = reported.lock().unwrap().take();
        reported.unwrap().send(Instant::now()).unwrap();
    });
    let background = builder.build();
    let (start, started) = mpsc::channel();
    let (_release, released) = mpsc::channel::<()>();
    let timeout = Duration::from_secs(60);
    background
        .task("late")
        .timeout(timeout)
        .spawn_blocking(move || {
            start.send(Instant::now()).unwrap();
            let _ = released.recv();
        })
        .unwrap();
    let started = started.recv().unwrap(); // blocks the runtime, so that the timer is not polled yet
    advance(timeout / 2).await;
    assert_eq!(report.await.unwrap() - started, timeout);
}

#[test]
fn without_a_runtime_a_timeout_is_reported_when_the_task_ends() {
    let (background, failures) = with_failure_log(with_threads(1));
    // The task must take longer than its timeout, so it sleeps.
    let late = background.task("late").timeout(Duration::ZERO);
    late.spawn_blocking(|| std::thread::sleep(Duration::from_millis(1))).unwrap();
    current_thread_runtime().block_on(background.shutdown(LONG));
    assert_eq!(failures.entries(), ["background task 1 `late` exceeded its timeout of 0ns"]);
}
