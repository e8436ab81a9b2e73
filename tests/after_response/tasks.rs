//! Names, cancellation and timeouts of tasks.

use std::time::Duration;

use tokio::sync::oneshot;
use tower_offload::{
    AfterResponse,
    after_response::End,
    background::{TaskTarget, cancelled},
};
use tower_offload_tests::eventually;

use crate::support::{LONG, Log, after_shutdown, exchange, hold, logging, on_no_thread, on_threads, panics, responded};

#[tokio::test]
async fn replace_cancels_earlier_tasks_of_the_same_name() {
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 200, End::Complete, |after| {
        after.task("mail").spawn_blocking(log.adds("first")).unwrap();
        after.task("mail").spawn_blocking(log.adds("second")).unwrap();
        after.task("index").replace().spawn_blocking(log.adds("index")).unwrap();
        after.task("index").replace().spawn_blocking(log.adds("other index")).unwrap();
        after.task("").replace().spawn_blocking(log.adds("no name")).unwrap();
        after.task("").replace().spawn_blocking(log.adds("no name either")).unwrap();
    })
    .await;
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (5, 1));
    assert_eq!(log.entries(), ["first", "second", "other index", "no name", "no name either"]);
}

/// A task takes its place when its response has ended, so an open response holds up no sequence.
#[tokio::test]
async fn tasks_of_several_requests_share_a_sequence() {
    let (background, log) = (on_threads(4).build(), Log::default());
    let register = |name: &'static str| {
        let log = log.clone();
        move |after: &AfterResponse| {
            for _ in 0..2 {
                let work = log.adds(name);
                after.task(name).concurrent(2).sequence("customer:7").spawn_blocking(work).unwrap();
            }
        }
    };
    let open = responded(&background, register("first request")).await;
    exchange(&background, 200, End::Complete, register("second request")).await;
    eventually("the second request's tasks have run", async || log.entries().len() == 2).await;
    let reserved = responded(&background, |after| {
        let task = TaskTarget::reserve(after, "third request".into()).unwrap();
        task.sequence("customer:7").unwrap().spawn_blocking(log.adds("third request"));
    });
    drop(open);
    drop(reserved.await);
    assert_eq!(after_shutdown(&background).await.completed, 5);
    let mut entries = log.entries();
    entries.retain(|entry| entry != "third request");
    assert_eq!(entries, ["second request", "second request", "first request", "first request"]);
}

#[tokio::test]
async fn one_sequence_cannot_use_all_places_of_open_responses() {
    let background = on_threads(1).max_awaiting_response(4).build();
    let response = responded(&background, |after| {
        let register = |key: &str| after.task("").sequence(key).spawn_blocking(|| ());
        assert!(register("a").is_ok() && register("a").is_ok());
        assert!(register("a").unwrap_err().is_full());
        assert!(register("b").is_ok());
    });
    drop(response.await);
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.rejected), (3, 1));
}

#[tokio::test]
async fn names_are_scoped_to_the_request() {
    let (background, log) = (on_no_thread(), Log::default());
    let other =
        responded(&background, |after| drop(after.task("mail").spawn_blocking(log.adds("other's mail")).unwrap()))
            .await;
    exchange(&background, 200, End::Complete, |after| {
        assert_eq!(after.cancel("mail"), 0);
        after.task("mail").replace().spawn_blocking(log.adds("mail")).unwrap();
    })
    .await;
    drop(other);
    assert_eq!(after_shutdown(&background).await.completed, 2);
    assert_eq!(log.entries(), ["mail", "other's mail"]);
}

#[tokio::test]
async fn cancel_before_the_response_releases_the_reservation() {
    let (background, log) = (on_no_thread(), Log::default());
    let response = responded(&background, |after| {
        after.task("mail").spawn_blocking(|| panics("ran")).unwrap();
        after.task("mail").spawn(async { panics("ran") }).unwrap();
        let kept = after.task("index").spawn_blocking(log.adds("index")).unwrap();
        assert_eq!((after.cancel("mail"), after.cancel("mail"), after.cancel("other")), (2, 0, 0));
        assert_eq!((background.stats().awaiting_response, background.stats().cancelled), (1, 2));
        let _ = kept;
    });
    drop(response.await);
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.cancelled, stats.skipped), (1, 2, 0));
    assert_eq!(log.entries(), ["index"]);
}

#[tokio::test]
async fn cancel_after_the_response_stops_running_and_queued_tasks() {
    let background = on_threads(1).max_running(1).build();
    let held = hold(&background).await;
    let (saw, seen) = oneshot::channel();
    let (entered, inside) = oneshot::channel();
    let mut handle = None;
    let response = responded(&background, |after| {
        let runs = after.task("runs").spawn_blocking(move || {
            entered.send(()).unwrap();
            while !cancelled() {
                std::thread::yield_now();
            }
            saw.send(()).unwrap();
        });
        after.task("waits").spawn_blocking(|| panics("ran")).unwrap();
        handle = Some((after.clone(), runs.unwrap()));
    });
    drop(response.await);
    held.release();
    inside.await.unwrap();
    let (after, runs) = handle.unwrap();
    assert_eq!(after.cancel("waits"), 1);
    assert!(runs.cancel());
    seen.await.unwrap();
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.cancelled, stats.failed), (1, 2, 0));
    assert_eq!((after.cancel("runs"), runs.cancel()), (0, false), "both have ended");
}

/// The task `alone` waits because it must not run concurrently. The task `behind` may run
/// concurrently, but waits for it because of the order.
#[tokio::test]
async fn cancelling_a_queued_task_starts_the_next_one() {
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
    tokio::time::timeout(LONG, starts).await.unwrap().unwrap(); // while the first task runs
    release.send(()).unwrap();
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.cancelled), (2, 1));
}

#[tokio::test]
async fn timeout_ends_the_task_and_starts_the_next() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    let response = responded(&background, |after| {
        let late = after.task("late").timeout(Duration::from_millis(1));
        late.spawn(std::future::pending::<()>()).unwrap();
        after.task("in time").timeout(LONG).spawn_blocking(log.adds("in time")).unwrap();
    });
    drop(response.await);
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 1));
    assert_eq!(failures.entries(), ["background task 1 `late` exceeded its timeout of 1ms"]);
    assert_eq!(log.entries(), ["in time"]);
}

#[tokio::test]
async fn blocking_task_past_its_timeout_runs_beside_the_next() {
    let (background, failures) = logging(on_threads(2));
    let (proceed, proceeds) = std::sync::mpsc::channel::<()>();
    let (ran, runs) = oneshot::channel();
    let response = responded(&background, |after| {
        // Long enough for the closure to begin.
        let stuck = after.task("stuck").timeout(Duration::from_millis(200));
        stuck.spawn_blocking(move || proceeds.recv_timeout(LONG).unwrap_or_default()).unwrap();
        after.spawn_blocking(move || ran.send(()).unwrap()).unwrap();
    });
    drop(response.await);
    runs.await.unwrap(); // while the first task still runs
    assert_eq!(failures.entries(), ["background task 1 `stuck` still runs after its timeout of 200ms"]);
    drop(proceed);
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.failed), (1, 1));
}

#[test]
#[should_panic = "never starts"]
fn zero_concurrency_panics() {
    let background = on_no_thread();
    let registered = responded(&background, |after| drop(after.task("mail").concurrent(0)));
    drop(pollster::block_on(registered));
}
