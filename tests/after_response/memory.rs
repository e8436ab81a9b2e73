//! Work that holds its own handle is released.

use std::sync::{Arc, Weak};

use tower_offload::{AfterResponse, after_response::End};

use crate::support::{Log, after_shutdown, exchange, on_no_thread, responded};

/// Returns a value for work to hold, and a reference that shows whether the value was dropped.
fn tracer() -> (Arc<()>, Weak<()>) {
    let held = Arc::new(());
    let tracer = Arc::downgrade(&held);
    (held, tracer)
}

/// Registers work of each kind that holds the handle, which holds the work: a reference cycle.
fn register(after: &AfterResponse, held: &Arc<()>) {
    let own = || (after.clone(), held.clone());
    let it = own();
    after.hook(move |_| drop(it));
    for condition in [true, false] {
        let (it, also) = (own(), own());
        let when = move |_: &_| {
            let _ = &also;
            condition
        };
        after.task("").when(when).spawn_blocking(move || drop(it)).unwrap();
        let it = own();
        after.task("").when(move |_| condition).spawn(async move { drop(it) }).unwrap();
        let it = own();
        let error = move || {
            drop(it);
            Err("no")
        };
        after.task("").when(move |_| condition).spawn_blocking(error).unwrap();
    }
    let it = own();
    assert!(after.spawn_blocking(move || drop(it)).unwrap().cancel());
}

#[tokio::test]
async fn work_holding_the_handle_is_released_at_every_end() {
    for end in [End::Aborted, End::BodyError, End::BodyTooShort, End::Complete, End::HandlerError, End::NoResponse] {
        let background = on_no_thread();
        let (held, tracer) = tracer();
        exchange(&background, 200, end, |after| register(after, &held)).await;
        drop(held);
        after_shutdown(&background).await;
        while tracer.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn tasks_stopped_by_a_failure_are_released() {
    let background = on_no_thread();
    let (held, tracer) = tracer();
    let response = responded(&background, |after| {
        after.task("").stop_on_error().spawn_blocking(|| Err("no")).unwrap();
        register(after, &held);
    });
    drop(response.await);
    drop(held);
    after_shutdown(&background).await;
    while tracer.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

/// A stream that replaces a task for each of its messages must not grow with their number.
#[tokio::test]
async fn replaced_and_cancelled_tasks_are_released_at_once() {
    let background = on_no_thread();
    let (held, tracer) = tracer();
    let mut kept = None;
    let open = responded(&background, |after| kept = Some(after.clone())).await;
    let after = kept.unwrap();
    let register = || {
        let held = held.clone();
        after.task("save").replace().spawn_blocking(move || drop(held)).unwrap()
    };
    for _ in 0..3 {
        register();
        assert_eq!(tracer.strong_count(), 2);
    }
    assert_eq!((after.cancel("save"), tracer.strong_count()), (1, 1));

    // After the end of the response, queued behind a running task.
    let (proceed, proceeds) = tokio::sync::oneshot::channel::<()>();
    after.spawn(async { proceeds.await.unwrap() }).unwrap();
    drop(open);
    tokio::task::yield_now().await;
    for _ in 0..3 {
        register();
        tokio::task::yield_now().await;
        assert_eq!(tracer.strong_count(), 2);
    }
    proceed.send(()).unwrap();
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.cancelled, stats.skipped), (2, 5, 0));
}

/// Once a shutdown reports a task as ended, the values that it held are dropped, even if it never
/// ran.
#[tokio::test]
async fn skipped_task_drops_its_values_before_its_reservation() {
    struct Last(Log, tower_offload::Background);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.add(self.1.stats().awaiting_response);
        }
    }
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 404, End::Complete, |after| {
        let held = Last(log.clone(), background.clone());
        after.spawn_blocking(move || drop(held)).unwrap();
    })
    .await;
    assert_eq!(after_shutdown(&background).await.skipped, 1);
    assert_eq!(log.entries(), ["1"]);
}
