use std::{sync::mpsc, time::Duration};

use tokio::sync::oneshot;
use tower_offload::{Background, background::cancelled};

use crate::support::{LONG, Log, hold, logging, on_threads, panics};

#[tokio::test]
async fn tasks_in_flight_and_pending_ones_finish_within_the_grace_silently_e13_e16_e22() {
    let (background, failures) = logging(on_threads(1).max_running(1));
    let held = hold(&background, "held").await;
    let log = Log::default();
    let ran = log.clone();
    background.run(move || ran.add("pending")).unwrap();
    let mut drain = Box::pin(background.drain(LONG));
    assert!(futures_util::poll!(&mut drain).is_pending());
    assert!(background.is_closed());
    let refused = background.run(|| ()).unwrap_err(); // E14
    assert!(refused.is_closed() && !refused.is_full());
    held.release();
    let report = drain.await;
    assert_eq!((report.completed, report.failed, report.cancelled), (2, 0, 0));
    assert!(report.is_clean());
    assert_eq!(log.entries(), ["pending"]);
    assert!(failures.entries().is_empty());
}

#[tokio::test]
async fn at_the_deadline_pending_ones_are_cancelled_and_running_ones_listed_e14_e15_e19() {
    let (background, failures) = logging(on_threads(2).max_running(2));
    let (stopped, stops) = oneshot::channel();
    let (entered, inside) = oneshot::channel();
    let told = background.task("told to stop").run(move || {
        entered.send(()).unwrap();
        while !cancelled() {
            std::thread::yield_now();
        }
        stopped.send(()).unwrap();
    });
    inside.await.unwrap();
    let held = hold(&background, "stuck").await;
    background.task("pending").run(|| panics("ran")).unwrap();
    let reserved = background.reserve("reserved").unwrap();

    let report = background.drain(Duration::from_millis(1)).await;
    let orphans: Vec<_> = report.orphaned.iter().map(|orphan| (orphan.id, &*orphan.name)).collect();
    assert_eq!(orphans, [(told.unwrap().id(), "told to stop"), (held.task.id(), "stuck")]);
    assert_eq!((report.completed, report.failed, report.cancelled), (0, 0, 2));
    assert!(!report.is_clean());
    assert!(report.to_string().contains("2 orphaned: 1 `told to stop` for "), "{report}");
    reserved.run(|| panics("its place is gone"));
    stops.await.unwrap(); // the token was seen

    held.release();
    let second = background.drain(LONG).await;
    assert!(second.orphaned.is_empty());
    assert_eq!(background.stats().cancelled, 4, "both ended, told to stop");
    assert!(failures.entries().is_empty(), "{:?}", failures.entries());
}

/// What ignores that it is cancelled is shielded, as other frameworks call it.
#[tokio::test]
async fn sync_work_that_ignores_its_cancellation_completes_or_is_listed_e19() {
    let background = on_threads(1).build();
    let log = Log::default();
    let (proceed, proceeds) = mpsc::channel::<()>();
    let (entered, inside) = oneshot::channel();
    let effect = log.clone();
    let shielded = background.task("shielded").run(move || {
        entered.send(()).unwrap();
        let _ = proceeds.recv();
        effect.add(if cancelled() { "told to stop" } else { "not told" });
    });
    inside.await.unwrap();
    let first = background.drain(Duration::from_millis(1)).await;
    let orphans: Vec<_> = first.orphaned.iter().map(|orphan| (orphan.id, &*orphan.name)).collect();
    assert_eq!(orphans, [(shielded.unwrap().id(), "shielded")]);
    assert!(log.entries().is_empty());

    drop(proceed);
    let second = background.drain(LONG).await;
    assert!(second.orphaned.is_empty());
    assert_eq!(log.entries(), ["told to stop"], "it did what it had to do");
}

#[tokio::test]
async fn what_is_cancelled_during_the_grace_and_ignores_it_is_waited_for_e19() {
    let background = on_threads(1).build();
    let log = Log::default();
    let effect = log.clone();
    let held = hold(&background, "held").await;
    background.run(move || effect.add("after it")).unwrap();
    let mut drain = Box::pin(background.drain(LONG));
    assert!(futures_util::poll!(&mut drain).is_pending());
    assert!(held.task.cancel());
    assert!(futures_util::poll!(&mut drain).is_pending(), "it still runs");
    held.release();
    let report = drain.await;
    assert_eq!((report.completed, report.cancelled, report.orphaned.len()), (1, 1, 0));
    assert_eq!(log.entries(), ["after it"]);
}

#[tokio::test]
async fn whatever_tasks_do_is_visible_when_a_drain_is_over_e22() {
    for _ in 0..50 {
        let (background, failures) = logging(on_threads(2));
        let log = Log::default();
        let (sync, later, inner) = (log.clone(), log.clone(), background.clone());
        background.run(move || sync.add("sync")).unwrap();
        let work = async move {
            tokio::task::yield_now().await;
            let nested = later.clone();
            later.add("async");
            inner.run(move || nested.add("nested")).unwrap();
        };
        background.spawn(work).unwrap();
        background.run(|| Err("no")).unwrap();
        let report = background.drain(LONG).await;
        let mut entries = log.entries();
        entries.sort_unstable();
        assert_eq!(entries, ["async", "nested", "sync"]);
        assert_eq!(failures.entries().len(), 1);
        let stats = background.stats();
        assert!(report.is_clean());
        assert_eq!((stats.completed, stats.failed, stats.running), (3, 1, 0));
    }
}

/// Blocks when it is dropped, until it is let go, and says when it is gone.
struct Clingy {
    let_go: mpsc::Receiver<()>,
    _gone: oneshot::Sender<()>,
}

impl Drop for Clingy {
    fn drop(&mut self) {
        let _ = self.let_go.recv();
    }
}

fn clingy() -> (Clingy, mpsc::Sender<()>, oneshot::Receiver<()>) {
    let (let_go, released) = mpsc::channel();
    let (_gone, gone) = oneshot::channel();
    (Clingy { let_go: released, _gone }, let_go, gone)
}

/// If it did, this would hang.
#[tokio::test]
async fn pending_work_whose_drop_blocks_does_not_hold_up_a_drain_e15() {
    let background = on_threads(1).max_running(1).build();
    let held = hold(&background, "held").await;
    let (closure, let_go_closure, closure_gone) = clingy();
    let (future, let_go_future, future_gone) = clingy();
    background.run(move || drop(closure)).unwrap();
    background.spawn(async move { drop(future) }).unwrap();
    let report = background.drain(Duration::ZERO).await;
    assert_eq!((report.cancelled, report.orphaned.len()), (2, 1));
    drop((let_go_closure, let_go_future, held));
    assert!(closure_gone.await.is_err() && future_gone.await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_running_task_whose_drop_blocks_its_runtime_is_an_orphan_e15() {
    let background = on_threads(1).build();
    let (future, let_go, gone) = clingy();
    let (entered, inside) = oneshot::channel();
    let work = async move {
        let _future = future;
        entered.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    background.task("blocks").spawn(work).unwrap();
    inside.await.unwrap();
    let report = background.drain(Duration::ZERO).await; // on the test's own thread, not on the runtime's
    assert_eq!(report.orphaned[0].name, "blocks");
    drop(let_go);
    assert!(gone.await.is_err());
}

#[tokio::test]
async fn what_has_a_permit_and_no_thread_never_begins_after_the_deadline() {
    let background = on_threads(1).max_running(2).build();
    let held = hold(&background, "held").await;
    background.task("no thread").run(|| panics("ran")).unwrap();
    assert_eq!(background.stats().running, 2);
    let report = background.drain(Duration::ZERO).await;
    assert_eq!((report.cancelled, report.orphaned.len()), (1, 1));
    held.release();
    assert_eq!(background.drain(LONG).await.failed, 0);
}

#[tokio::test]
async fn an_async_task_that_never_ends_is_listed_and_dropped() {
    let background = on_threads(1).build();
    let (dropped, drops) = oneshot::channel::<()>();
    let (entered, inside) = oneshot::channel();
    background
        .task("endless")
        .spawn(async move {
            let _dropped = dropped;
            entered.send(()).unwrap();
            std::future::pending::<()>().await;
        })
        .unwrap();
    inside.await.unwrap();
    let report = background.drain(Duration::ZERO).await;
    assert_eq!(report.orphaned[0].name, "endless");
    assert!(drops.await.is_err());
    background.drain(LONG).await;
    assert_eq!(background.stats().cancelled, 1);
}

#[tokio::test]
async fn what_a_running_task_registers_runs_in_the_same_drain_to_depth_5_d15() {
    fn nest(background: &Background, log: &Log, depth: usize) {
        let (inner, ran) = (background.clone(), log.clone());
        let work = move || {
            ran.add(depth);
            if depth < 5 {
                nest(&inner, &ran, depth + 1);
            }
        };
        if depth % 2 == 0 { background.run(work) } else { background.spawn(async move { work() }) }.unwrap();
    }
    let background = on_threads(1).max_running(1).build();
    let held = hold(&background, "held").await;
    let log = Log::default();
    nest(&background, &log, 1);
    let mut drain = Box::pin(background.drain(LONG));
    assert!(futures_util::poll!(&mut drain).is_pending());
    assert!(background.run(|| ()).is_err(), "from outside: closed");
    held.release();
    assert_eq!(drain.await.completed, 6);
    assert_eq!(log.entries(), ["1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn a_task_of_another_background_is_outside() {
    let (closed, other) = (on_threads(1).build(), on_threads(1).build());
    closed.close();
    let (tell, told) = mpsc::channel();
    other.run(move || tell.send(closed.run(|| ()).is_err()).unwrap()).unwrap();
    other.drain(LONG).await;
    assert_eq!(told.recv(), Ok(true));
}

#[tokio::test]
async fn a_drain_that_is_dropped_leaves_it_closed_and_the_tasks_alone() {
    let background = on_threads(1).build();
    let held = hold(&background, "held").await;
    {
        let mut drain = Box::pin(background.drain(LONG));
        assert!(futures_util::poll!(&mut drain).is_pending());
    }
    assert!(background.is_closed());
    held.release();
    assert!(background.drain(LONG).await.is_clean());
}

#[tokio::test]
async fn tasks_go_on_when_every_handle_is_gone() {
    let background = on_threads(1).max_running(1).build();
    let held = hold(&background, "held").await;
    let (ran, runs) = oneshot::channel();
    background.run(move || ran.send(()).unwrap()).unwrap();
    drop(background);
    held.release();
    runs.await.unwrap();
}
