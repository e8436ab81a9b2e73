//! Names, cancellation and time.

use std::time::Duration;

use tokio::sync::oneshot;
use tower_offload::{after_response::End, background::cancelled};

use crate::support::{LONG, Log, drained, exchange, hold, logging, on_no_thread, on_threads, panics, responded};

#[tokio::test]
async fn of_two_of_the_same_name_the_last_one_runs_if_it_says_so_d12() {
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 200, End::Complete, |after| {
        after.task("mail").run(log.adds("first")).unwrap();
        after.task("mail").run(log.adds("second")).unwrap();
        after.task("index").replace().run(log.adds("index")).unwrap();
        after.task("index").replace().run(log.adds("other index")).unwrap();
        after.task("").replace().run(log.adds("no name")).unwrap();
        after.task("").replace().run(log.adds("no name either")).unwrap();
    })
    .await;
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (5, 1));
    assert_eq!(log.entries(), ["first", "second", "other index", "no name", "no name either"]);
}

#[tokio::test]
async fn a_name_is_a_requests_own_d12_d13() {
    let (background, log) = (on_no_thread(), Log::default());
    let other = responded(&background, |after| drop(after.task("mail").run(log.adds("other's mail")).unwrap())).await;
    exchange(&background, 200, End::Complete, |after| {
        assert_eq!(after.cancel("mail"), 0);
        after.task("mail").replace().run(log.adds("mail")).unwrap();
    })
    .await;
    drop(other);
    assert_eq!(drained(&background).await.completed, 2);
    assert_eq!(log.entries(), ["mail", "other's mail"]);
}

#[tokio::test]
async fn what_is_cancelled_before_the_response_never_runs_and_its_place_is_free_at_once_d13() {
    let (background, log) = (on_no_thread(), Log::default());
    let response = responded(&background, |after| {
        after.task("mail").run(|| panics("ran")).unwrap();
        after.task("mail").spawn(async { panics("ran") }).unwrap();
        let kept = after.task("index").run(log.adds("index")).unwrap();
        assert_eq!((after.cancel("mail"), after.cancel("mail"), after.cancel("other")), (2, 0, 0));
        assert_eq!((background.stats().reserved, background.stats().cancelled), (1, 2));
        let _ = kept;
    });
    drop(response.await);
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.cancelled, stats.skipped), (1, 2, 0));
    assert_eq!(log.entries(), ["index"]);
}

#[tokio::test]
async fn what_is_cancelled_after_the_response_is_told_or_never_begins_d13() {
    let background = on_threads(1).max_running(1).build();
    let held = hold(&background).await;
    let (saw, seen) = oneshot::channel();
    let (entered, inside) = oneshot::channel();
    let mut handle = None;
    let response = responded(&background, |after| {
        let runs = after.task("runs").run(move || {
            entered.send(()).unwrap();
            while !cancelled() {
                std::thread::yield_now();
            }
            saw.send(()).unwrap();
        });
        after.task("waits").run(|| panics("ran")).unwrap();
        handle = Some((after.clone(), runs.unwrap()));
    });
    drop(response.await);
    held.release();
    inside.await.unwrap();
    let (after, runs) = handle.unwrap();
    assert_eq!(after.cancel("waits"), 1);
    assert!(runs.cancel());
    seen.await.unwrap();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.cancelled, stats.failed), (1, 2, 0));
    assert_eq!((after.cancel("runs"), runs.cancel()), (0, false), "over");
}

/// The one in front wants to be alone, and the one behind does not.
#[tokio::test]
async fn cancelling_a_task_that_waits_starts_the_one_behind_it_d13() {
    let background = on_no_thread();
    let ((entered, inside), (release, released)) = (oneshot::channel(), oneshot::channel::<()>());
    let (started, starts) = oneshot::channel();
    let mut kept = None;
    let response = responded(&background, |after| {
        let running = async move {
            entered.send(()).unwrap();
            released.await.unwrap();
        };
        after.task("running").spawn(running).unwrap();
        after.task("alone").concurrent(1).spawn(async { panics("ran") }).unwrap();
        after.task("behind").concurrent(4).spawn(async { started.send(()).unwrap() }).unwrap();
        kept = Some(after.clone());
    });
    drop(response.await);
    inside.await.unwrap();
    assert_eq!(kept.unwrap().cancel("alone"), 1);
    tokio::time::timeout(LONG, starts).await.unwrap().unwrap(); // while the first one runs
    release.send(()).unwrap();
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (2, 1));
}

#[tokio::test]
async fn a_timeout_ends_that_task_and_the_next_begins_d10() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    let response = responded(&background, |after| {
        let late = after.task("late").timeout(Duration::from_millis(1));
        late.spawn(std::future::pending::<()>()).unwrap();
        after.task("in time").timeout(LONG).run(log.adds("in time")).unwrap();
    });
    drop(response.await);
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 1));
    assert_eq!(failures.entries(), ["background task 1 `late` exceeded its timeout of 1ms"]);
    assert_eq!(log.entries(), ["in time"]);
}

#[tokio::test]
async fn a_blocking_task_past_its_time_goes_on_beside_the_next_one_d10() {
    let (background, failures) = logging(on_threads(2));
    let (proceed, proceeds) = std::sync::mpsc::channel::<()>();
    let (ran, runs) = oneshot::channel();
    let response = responded(&background, |after| {
        let stuck = after.task("stuck").timeout(Duration::from_millis(1));
        stuck.run(move || proceeds.recv_timeout(LONG).unwrap_or_default()).unwrap();
        after.run(move || ran.send(()).unwrap()).unwrap();
    });
    drop(response.await);
    runs.await.unwrap(); // while the first is inside
    assert_eq!(failures.entries(), ["background task 1 `stuck` still runs after its timeout of 1ms"]);
    drop(proceed);
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 1));
}

#[test]
#[should_panic = "never starts"]
fn a_task_that_could_never_start_is_a_mistake() {
    let background = on_no_thread();
    let registered = responded(&background, |after| drop(after.task("mail").concurrent(0)));
    drop(pollster::block_on(registered));
}
