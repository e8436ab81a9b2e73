//! What holds the handle and is held by it is given back all the same.

use std::sync::{Arc, Weak};

use tower_offload::{AfterResponse, after_response::End};

use crate::support::{Log, drained, exchange, on_no_thread, responded};

/// Something that lives as long as what was registered.
fn tracer() -> (Arc<()>, Weak<()>) {
    let held = Arc::new(());
    let tracer = Arc::downgrade(&held);
    (held, tracer)
}

/// Registers work of each kind that holds the handle, through which it holds itself.
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
        after.task("").when(when).run(move || drop(it)).unwrap();
        let it = own();
        after.task("").when(move |_| condition).spawn(async move { drop(it) }).unwrap();
        let it = own();
        let error = move || {
            drop(it);
            Err("no")
        };
        after.task("").when(move |_| condition).run(error).unwrap();
    }
    let it = own();
    assert!(after.run(move || drop(it)).unwrap().cancel());
}

#[tokio::test]
async fn work_that_holds_the_handle_is_no_leak_at_any_end() {
    for end in [End::Aborted, End::BodyError, End::BodyTooShort, End::Complete, End::HandlerError, End::NoResponse] {
        let background = on_no_thread();
        let (held, tracer) = tracer();
        exchange(&background, 200, end, |after| register(after, &held)).await;
        drop(held);
        drained(&background).await;
        while tracer.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_a_failure_stops_is_given_back() {
    let background = on_no_thread();
    let (held, tracer) = tracer();
    let response = responded(&background, |after| {
        after.task("").stop_on_error().run(|| Err("no")).unwrap();
        register(after, &held);
    });
    drop(response.await);
    drop(held);
    drained(&background).await;
    while tracer.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

/// A stream that does so for each of its messages must not grow with their number: places are free, so nothing else bounds it.
#[tokio::test]
async fn what_is_replaced_or_cancelled_by_name_is_given_back_at_once() {
    let background = on_no_thread();
    let (held, tracer) = tracer();
    let mut kept = None;
    let open = responded(&background, |after| kept = Some(after.clone())).await;
    let after = kept.unwrap();
    let register = || {
        let held = held.clone();
        after.task("save").replace().run(move || drop(held)).unwrap()
    };
    for _ in 0..3 {
        register();
        assert_eq!(tracer.strong_count(), 2);
    }
    assert_eq!((after.cancel("save"), tracer.strong_count()), (1, 1));

    // After the end, behind one that runs.
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
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.cancelled, stats.skipped), (2, 5, 0));
}

/// When a drain has said that a task is over, what it held is gone: also of one that never ran.
#[tokio::test]
async fn what_a_skipped_task_held_is_gone_before_its_place_is_free() {
    struct Last(Log, tower_offload::Background);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.add(self.1.stats().reserved);
        }
    }
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 404, End::Complete, |after| {
        let held = Last(log.clone(), background.clone());
        after.run(move || drop(held)).unwrap();
    })
    .await;
    assert_eq!(drained(&background).await.skipped, 1);
    assert_eq!(log.entries(), ["1"]);
}
