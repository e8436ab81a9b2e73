//! Panics of hooks, tasks, predicates and destructors are contained, and counted if they end a
//! task.

use tower_offload::after_response::End;

use crate::support::{Log, after_shutdown, exchange, logging, on_threads, outcome_of, panics, responded};

/// Panics when it is dropped, unless that would abort.
struct Bomb(Log);

impl Bomb {
    fn touch(&self) {}
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.add("dropped");
        if !std::thread::panicking() {
            panic!("in a drop");
        }
    }
}

#[tokio::test]
async fn panicking_hooks_all_run() {
    let (background, failures) = logging(on_threads(1));
    for _ in 0..2 {
        let log = Log::default();
        let mut outcome = None;
        let response = responded(&background, |after| {
            outcome = Some(outcome_of(after));
            for hook in [log.adds("first"), log.adds("second")] {
                after.hook(move |_| {
                    hook();
                    panics("in a hook");
                });
            }
            after.spawn_blocking(|| ()).unwrap();
        });
        drop(response.await);
        assert!(outcome.unwrap().await.is_ok());
        assert_eq!(log.entries(), ["second", "first"]);
    }
    assert_eq!(after_shutdown(&background).await.completed, 2);
    assert!(failures.entries().is_empty(), "a hook is not a task");
}

#[tokio::test]
async fn panic_in_drop_of_a_hook_or_task_is_contained() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    let mut outcome = None;
    let response = responded(&background, |after| {
        outcome = Some(outcome_of(after));
        let bombs: [Bomb; 4] = std::array::from_fn(|_| Bomb(log.clone()));
        let [in_hook, in_closure, in_future, in_condition] = bombs;
        after.hook(move |_| in_hook.touch());
        after.task("closure").spawn_blocking(move || in_closure.touch()).unwrap();
        after.task("future").spawn(async move { in_future.touch() }).unwrap();
        let when = move |_: &_| {
            in_condition.touch();
            true
        };
        after.task("condition").when(when).spawn_blocking(|| ()).unwrap();
        after.spawn_blocking(log.adds("next")).unwrap();
    });
    drop(response.await);
    assert!(outcome.unwrap().await.is_ok());
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.skipped), (1, 2, 1));
    assert_eq!(failures.entries().len(), 2);
    assert_eq!(log.entries().iter().filter(|entry| *entry == "dropped").count(), 4);
}

#[tokio::test]
async fn panic_in_drop_of_a_skipped_task_is_contained() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    exchange(&background, 404, End::Complete, |after| {
        let [skipped, pending, cancelled] = std::array::from_fn(|_| Bomb(log.clone()));
        after.task("skipped").spawn_blocking(move || skipped.touch()).unwrap();
        after.task("skipped").spawn(async move { pending.touch() }).unwrap();
        after.task("cancelled").always().spawn_blocking(move || cancelled.touch()).unwrap();
        assert_eq!(after.cancel("cancelled"), 1);
        after.task("").always().spawn_blocking(log.adds("next")).unwrap();
    })
    .await;
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.skipped, stats.cancelled, stats.reserved), (1, 2, 1, 0));
    assert!(failures.entries().is_empty());
    assert_eq!(log.entries(), ["dropped", "dropped", "dropped", "next"]);
}

/// Several tasks are dropped at once. A second panic while the first unwinds would abort the
/// process.
#[tokio::test]
async fn panic_in_drop_of_stopped_tasks_is_contained() {
    struct Always(Log);
    impl Drop for Always {
        fn drop(&mut self) {
            self.0.add("dropped");
            panic!("in a drop");
        }
    }
    let (background, _) = logging(on_threads(1));
    let log = Log::default();
    exchange(&background, 200, End::Complete, |after| {
        after.task("").stop_on_error().spawn_blocking(|| Err("no")).unwrap();
        for _ in 0..3 {
            let bomb = Always(log.clone());
            after.spawn_blocking(move || panics(&bomb.0.entries().concat())).unwrap();
        }
    })
    .await;
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.failed, stats.skipped), (1, 3));
    assert_eq!(log.entries(), ["dropped"; 3]);
}
