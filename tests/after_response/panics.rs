//! C12: whatever panics, it is contained, counted if it is a task's, and the next request is served.

use tower_offload::after_response::End;

use crate::support::{Log, drained, exchange, logging, on_threads, panics, responded, told};

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
async fn hooks_that_panic_are_all_called_d5_d6() {
    let (background, failures) = logging(on_threads(1));
    for _ in 0..2 {
        let log = Log::default();
        let mut outcome = None;
        let response = responded(&background, |after| {
            outcome = Some(told(after));
            for hook in [log.adds("first"), log.adds("second")] {
                after.hook(move |_| {
                    hook();
                    panics("in a hook");
                });
            }
            after.run(|| ()).unwrap();
        });
        drop(response.await);
        assert!(outcome.unwrap().await.is_ok());
        assert_eq!(log.entries(), ["second", "first"]);
    }
    assert_eq!(drained(&background).await.completed, 2);
    assert!(failures.entries().is_empty(), "a hook is no task");
}

#[tokio::test]
async fn what_a_hook_or_a_task_drops_may_panic() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    let mut outcome = None;
    let response = responded(&background, |after| {
        outcome = Some(told(after));
        let bombs: [Bomb; 4] = std::array::from_fn(|_| Bomb(log.clone()));
        let [in_hook, in_closure, in_future, in_condition] = bombs;
        after.hook(move |_| in_hook.touch());
        after.task("closure").run(move || in_closure.touch()).unwrap();
        after.task("future").spawn(async move { in_future.touch() }).unwrap();
        let when = move |_: &_| {
            in_condition.touch();
            true
        };
        after.task("condition").when(when).run(|| ()).unwrap();
        after.run(log.adds("next")).unwrap();
    });
    drop(response.await);
    assert!(outcome.unwrap().await.is_ok());
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.failed, stats.skipped), (1, 2, 1));
    assert_eq!(failures.entries().len(), 2);
    assert_eq!(log.entries().iter().filter(|entry| *entry == "dropped").count(), 4);
}

#[tokio::test]
async fn what_is_skipped_or_cancelled_may_panic_in_its_drop_and_frees_its_place() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    exchange(&background, 404, End::Complete, |after| {
        let [skipped, pending, cancelled] = std::array::from_fn(|_| Bomb(log.clone()));
        after.task("skipped").run(move || skipped.touch()).unwrap();
        after.task("skipped").spawn(async move { pending.touch() }).unwrap();
        after.task("cancelled").always().run(move || cancelled.touch()).unwrap();
        assert_eq!(after.cancel("cancelled"), 1);
        after.task("").always().run(log.adds("next")).unwrap();
    })
    .await;
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.skipped, stats.cancelled, stats.reserved), (1, 2, 1, 0));
    assert!(failures.entries().is_empty());
    assert_eq!(log.entries(), ["dropped", "dropped", "dropped", "next"]);
}

/// More than one at once: a second panic in the unwinding of the first would abort the process.
#[tokio::test]
async fn what_a_failure_stops_may_panic_in_its_drop() {
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
        after.task("").stop_on_error().run(|| Err("no")).unwrap();
        for _ in 0..3 {
            let bomb = Always(log.clone());
            after.run(move || panics(&bomb.0.entries().concat())).unwrap();
        }
    })
    .await;
    let stats = drained(&background).await;
    assert_eq!((stats.failed, stats.skipped), (1, 3));
    assert_eq!(log.entries(), ["dropped"; 3]);
}
