use std::{sync::mpsc, thread, time::Duration};

use tokio::{runtime::Handle, sync::oneshot, time::advance};
use tower_offload::{Background, background::cancelled};

use crate::support::{LONG, Log, block, panics, with_failure_log, with_threads};

#[tokio::test]
async fn running_and_queued_tasks_finish_within_the_timeout() {
    let (background, failures) = with_failure_log(with_threads(1).max_running(1));
    let blocked = block(&background, "blocked").await;
    let log = Log::default();
    let ran = log.clone();
    background.spawn_blocking(move || ran.add("queued")).unwrap();
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    assert!(background.is_closed());
    let rejected = background.spawn_blocking(|| ()).unwrap_err();
    assert!(rejected.is_closed() && !rejected.is_full());
    blocked.release();
    let report = shutdown.await;
    assert_eq!((report.completed, report.failed, report.cancelled), (2, 0, 0));
    assert!(report.is_clean());
    assert_eq!(log.entries(), ["queued"]);
    assert!(failures.entries().is_empty());
}

#[tokio::test]
async fn a_timeout_cancels_queued_tasks_and_lists_running_ones() {
    let (background, failures) = with_failure_log(with_threads(2).max_running(2));
    let (stop, stopped) = oneshot::channel();
    let (start, started) = oneshot::channel();
    let cooperative = background.task("cooperative").spawn_blocking(move || {
        start.send(()).unwrap();
        while !cancelled() {
            std::thread::yield_now();
        }
        stop.send(()).unwrap();
    });
    started.await.unwrap();
    let blocked = block(&background, "blocked").await;
    background.task("queued").spawn_blocking(|| panics("ran")).unwrap();
    let reserved = background.reserve("reserved").unwrap();

    let report = background.shutdown(Duration::from_millis(1)).await;
    let running: Vec<_> = report.still_running.iter().map(|task| (task.id, &*task.name)).collect();
    assert_eq!(running, [(cooperative.unwrap().id(), "cooperative"), (blocked.task.id(), "blocked")]);
    assert_eq!((report.completed, report.failed, report.cancelled), (0, 0, 2));
    assert!(!report.is_clean());
    assert!(report.to_string().contains("2 still running (task 1 `cooperative` for "), "{report}");
    reserved.spawn_blocking(|| panics("a cancelled reservation ran"));
    stopped.await.unwrap();

    blocked.release();
    let second = background.shutdown(LONG).await;
    assert!(second.still_running.is_empty());
    assert_eq!(background.stats().cancelled, 4, "running tasks count once they end");
    assert!(failures.entries().is_empty(), "{:?}", failures.entries());
}

#[tokio::test]
async fn a_closure_that_ignores_its_cancellation_runs_to_its_end() {
    let background = with_threads(1).build();
    let log = Log::default();
    let (proceed, proceeds) = mpsc::channel::<()>();
    let (start, started) = oneshot::channel();
    let effect = log.clone();
    let task = background.task("uncooperative").spawn_blocking(move || {
        start.send(()).unwrap();
        let _ = proceeds.recv();
        effect.add(if cancelled() { "cancelled" } else { "not cancelled" });
    });
    started.await.unwrap();
    let first = background.shutdown(Duration::from_millis(1)).await;
    let running: Vec<_> = first.still_running.iter().map(|task| (task.id, &*task.name)).collect();
    assert_eq!(running, [(task.unwrap().id(), "uncooperative")]);
    assert!(log.entries().is_empty());

    drop(proceed);
    let second = background.shutdown(LONG).await;
    assert!(second.still_running.is_empty());
    assert_eq!(log.entries(), ["cancelled"]);
}

#[tokio::test]
async fn a_shutdown_waits_for_a_cancelled_closure_that_runs() {
    let background = with_threads(1).build();
    let log = Log::default();
    let effect = log.clone();
    let blocked = block(&background, "blocked").await;
    background.spawn_blocking(move || effect.add("after it")).unwrap();
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    assert!(blocked.task.cancel());
    assert!(futures_util::poll!(&mut shutdown).is_pending(), "the closure still runs");
    blocked.release();
    let report = shutdown.await;
    assert_eq!((report.completed, report.cancelled, report.still_running.len()), (1, 1, 0));
    assert_eq!(log.entries(), ["after it"]);
}

#[tokio::test]
async fn effects_of_tasks_are_visible_after_a_shutdown() {
    for _ in 0..50 {
        let (background, failures) = with_failure_log(with_threads(2));
        let log = Log::default();
        let (blocking, later, inner) = (log.clone(), log.clone(), background.clone());
        background.spawn_blocking(move || blocking.add("closure")).unwrap();
        let work = async move {
            tokio::task::yield_now().await;
            let nested = later.clone();
            later.add("future");
            inner.spawn_blocking(move || nested.add("nested")).unwrap();
        };
        background.spawn(work).unwrap();
        background.spawn_blocking(|| Err("no")).unwrap();
        let report = background.shutdown(LONG).await;
        let mut entries = log.entries();
        entries.sort_unstable();
        assert_eq!(entries, ["closure", "future", "nested"]);
        assert_eq!(failures.entries().len(), 1);
        let stats = background.stats();
        assert!(report.is_clean());
        assert_eq!((stats.completed, stats.failed, stats.running), (3, 1, 0));
    }
}

/// A value whose drop blocks until it is released.
struct BlockingDrop {
    released: mpsc::Receiver<()>,
    /// Closes its channel when the drop has finished.
    _dropped: oneshot::Sender<()>,
}

impl BlockingDrop {
    /// Returns the value, its release, and a channel that is closed once it was dropped.
    fn new() -> (Self, mpsc::Sender<()>, oneshot::Receiver<()>) {
        let (release, released) = mpsc::channel();
        let (_dropped, dropped) = oneshot::channel();
        (Self { released, _dropped }, release, dropped)
    }
}

impl Drop for BlockingDrop {
    fn drop(&mut self) {
        let _ = self.released.recv();
    }
}

/// The drops block until after the shutdown, so a shutdown that waited for them would never return.
#[tokio::test]
async fn queued_work_whose_drop_blocks_does_not_delay_a_shutdown() {
    let background = with_threads(1).max_running(1).build();
    let blocked = block(&background, "blocked").await;
    let (closure, release_closure, closure_dropped) = BlockingDrop::new();
    let (future, release_future, future_dropped) = BlockingDrop::new();
    background.spawn_blocking(move || drop(closure)).unwrap();
    background.spawn(async move { drop(future) }).unwrap();
    let report = background.shutdown(Duration::ZERO).await;
    assert_eq!((report.cancelled, report.still_running.len()), (2, 1));
    drop((release_closure, release_future, blocked));
    assert!(closure_dropped.await.is_err() && future_dropped.await.is_err());
}

/// A destructor may spawn a task, for example one that closes a connection.
#[tokio::test]
async fn queued_work_is_dropped_within_the_runtime_at_the_timeout() {
    struct SendThread(mpsc::Sender<(String, bool)>);
    impl Drop for SendThread {
        fn drop(&mut self) {
            let name = thread::current().name().unwrap_or_default().to_owned();
            self.0.send((name, Handle::try_current().is_ok())).unwrap();
        }
    }
    let background = with_threads(1).max_running(1).build();
    let blocked = block(&background, "blocked").await;
    let (sender, drops) = mpsc::channel();
    let value = SendThread(sender);
    background.spawn_blocking(move || drop(value)).unwrap();
    background.shutdown(Duration::ZERO).await;
    assert_eq!(drops.recv_timeout(LONG), Ok(("background-shutdown".to_owned(), true)));
    blocked.release();
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_running_task_counts_from_its_start() {
    let background = with_threads(1).max_running(1).build();
    let first = block(&background, "first").await;
    let reservation = background.reserve("second").unwrap();
    advance(Duration::from_secs(1)).await;
    let (start, started) = oneshot::channel();
    let (_release, released) = mpsc::channel::<()>();
    reservation.spawn_blocking(move || {
        start.send(()).unwrap();
        let _ = released.recv();
    });
    advance(Duration::from_secs(2)).await;
    first.release();
    started.await.unwrap();
    advance(Duration::from_secs(4)).await;
    let report = background.shutdown(Duration::ZERO).await;
    let running: Vec<_> = report.still_running.iter().map(|task| (&*task.name, task.age)).collect();
    assert_eq!(running, [("second", Duration::from_secs(4))]);
}

/// The test itself is not on the runtime's worker thread, so it can await the shutdown.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_future_whose_drop_blocks_is_reported_as_running() {
    let background = with_threads(1).build();
    let (value, release, dropped) = BlockingDrop::new();
    let (start, started) = oneshot::channel();
    let work = async move {
        let _value = value;
        start.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    background.task("blocks").spawn(work).unwrap();
    started.await.unwrap();
    let report = background.shutdown(Duration::ZERO).await;
    assert_eq!(report.still_running[0].name, "blocks");
    drop(release);
    assert!(dropped.await.is_err());
}

#[tokio::test]
async fn a_dispatched_task_never_starts_after_the_timeout() {
    let background = with_threads(1).max_running(2).build();
    let blocked = block(&background, "blocked").await;
    background.task("no thread").spawn_blocking(|| panics("ran")).unwrap();
    assert_eq!(background.stats().running, 2);
    let report = background.shutdown(Duration::ZERO).await;
    assert_eq!((report.cancelled, report.still_running.len()), (1, 1));
    blocked.release();
    assert_eq!(background.shutdown(LONG).await.failed, 0);
}

#[tokio::test]
async fn an_endless_future_is_listed_and_dropped() {
    let background = with_threads(1).build();
    let (sender, dropped) = oneshot::channel::<()>();
    let (start, started) = oneshot::channel();
    background
        .task("endless")
        .spawn(async move {
            let _sender = sender;
            start.send(()).unwrap();
            std::future::pending::<()>().await;
        })
        .unwrap();
    started.await.unwrap();
    let report = background.shutdown(Duration::ZERO).await;
    assert_eq!(report.still_running[0].name, "endless");
    assert!(dropped.await.is_err());
    background.shutdown(LONG).await;
    assert_eq!(background.stats().cancelled, 1);
}

#[tokio::test]
async fn tasks_that_running_tasks_submit_belong_to_the_shutdown() {
    fn nest(background: &Background, log: &Log, depth: i32) {
        let (inner, ran) = (background.clone(), log.clone());
        let work = move || {
            ran.add(depth);
            if depth < 5 {
                nest(&inner, &ran, depth + 1);
            }
        };
        let submitted =
            if depth % 2 == 0 { background.spawn_blocking(work) } else { background.spawn(async move { work() }) };
        submitted.unwrap();
    }
    let background = with_threads(1).max_running(1).build();
    let blocked = block(&background, "blocked").await;
    let log = Log::default();
    nest(&background, &log, 1);
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    assert!(background.spawn_blocking(|| ()).is_err(), "closed to other submitters");
    blocked.release();
    assert_eq!(shutdown.await.completed, 6);
    assert_eq!(log.entries(), ["1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn a_closed_background_rejects_tasks_of_another_background() {
    let (closed, other) = (with_threads(1).build(), with_threads(1).build());
    closed.close();
    let (sender, is_rejected) = mpsc::channel();
    other.spawn_blocking(move || sender.send(closed.spawn_blocking(|| ()).is_err()).unwrap()).unwrap();
    other.shutdown(LONG).await;
    assert_eq!(is_rejected.recv(), Ok(true));
}

#[tokio::test]
async fn a_dropped_shutdown_closes_the_background_and_keeps_its_tasks() {
    let background = with_threads(1).build();
    let blocked = block(&background, "blocked").await;
    {
        let mut shutdown = Box::pin(background.shutdown(LONG));
        assert!(futures_util::poll!(&mut shutdown).is_pending());
    }
    assert!(background.is_closed());
    blocked.release();
    assert!(background.shutdown(LONG).await.is_clean());
}

#[tokio::test]
async fn tasks_run_after_the_last_handle_was_dropped() {
    let background = with_threads(1).max_running(1).build();
    let blocked = block(&background, "blocked").await;
    let (run, ran) = oneshot::channel();
    background.spawn_blocking(move || run.send(()).unwrap()).unwrap();
    drop(background);
    blocked.release();
    ran.await.unwrap();
}
