#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Version;
use tokio::{runtime, sync::oneshot, task::yield_now, time::advance};

use super::*;
use crate::{
    after_response::{Delivery, FlushOutcome, TestResponse},
    background::Background,
    pool::Inline,
};

/// Flushes responses at once that have registered this number of hooks each, and returns the
/// responses in the order in which their hooks ran. Their handles are dropped before, unless
/// `is_shared`.
async fn run_hooks(hooks: &[usize], is_shared: bool) -> Vec<usize> {
    let background = Background::builder().pool(Inline::new()).build();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (mut settled, mut kept) = (SettledExchanges::default(), Vec::new());
    for (number, hooks) in hooks.iter().enumerate() {
        let (response, waiter) = TestResponse::new(Version::HTTP_2);
        for _ in 0..*hooks {
            let order = order.clone();
            response.handle(&background).hook(move |_| order.lock().unwrap().push(number));
        }
        response.end();
        kept.extend(is_shared.then_some(response));
        let outcome = FlushOutcome::Flushed { body_bytes: Some(0) };
        waiter.complete(outcome, &Arc::new(AtomicU64::new(0)), &mut settled);
    }
    assert_eq!(runtime::Handle::current().metrics().num_alive_tasks(), 0);
    drop(settled);
    assert_eq!(runtime::Handle::current().metrics().num_alive_tasks(), 1, "they share a driver");
    while runtime::Handle::current().metrics().num_alive_tasks() > 0 {
        yield_now().await;
    }
    Arc::try_unwrap(order).unwrap().into_inner().unwrap()
}

#[tokio::test]
async fn hooks_of_responses_run_in_the_order_of_their_ends() {
    for is_shared in [true, false] {
        assert_eq!(run_hooks(&[1, 0, 2, 1], is_shared).await, [0, 2, 2, 3]);
    }
}

#[tokio::test]
async fn response_with_many_hooks_does_not_hold_up_the_others() {
    let expected = [vec![0; STEPS_PER_POLL], vec![1, 2], vec![0; 3]].concat();
    for is_shared in [true, false] {
        assert_eq!(run_hooks(&[STEPS_PER_POLL + 3, 1, 1], is_shared).await, expected);
    }
}

/// Completes a response with this outcome. Returns what its hook got, and the number of mismatches.
async fn complete(outcome: FlushOutcome, is_shared: bool) -> (Outcome, u64) {
    let background = Background::builder().pool(Inline::new()).build();
    let (response, waiter) = TestResponse::new(Version::HTTP_2);
    let (sender, result) = oneshot::channel();
    response.handle(&background).hook(|outcome| sender.send(outcome.clone()).unwrap());
    advance(Duration::from_secs(1)).await;
    response.end();
    advance(Duration::from_secs(1)).await;
    let kept = is_shared.then_some(response);
    let mismatched = Arc::default();
    waiter.complete(outcome, &mismatched, &mut SettledExchanges::default());
    let result = result.await.unwrap();
    drop(kept);
    (result, mismatched.load(Relaxed))
}

#[tokio::test(start_paused = true)]
async fn exchange_ends_alike_whether_it_is_shared_or_not() {
    for (outcome, delivery, mismatched) in [
        (FlushOutcome::Unmapped, Delivery::HandedOver, 0),
        (FlushOutcome::Stalled, Delivery::HandedOver, 0),
        (FlushOutcome::Lost, Delivery::NotDelivered, 0),
        (FlushOutcome::Flushed { body_bytes: None }, Delivery::Flushed, 0),
        (FlushOutcome::Flushed { body_bytes: Some(0) }, Delivery::Flushed, 0),
        (FlushOutcome::Flushed { body_bytes: Some(1) }, Delivery::HandedOver, 1),
    ] {
        let (shared, unshared) = (complete(outcome, true).await, complete(outcome, false).await);
        assert_eq!(shared, unshared);
        assert_eq!((shared.0.delivery, shared.1), (delivery, mismatched));
        let seconds = (shared.0.time_to_head.unwrap().as_secs(), shared.0.total.as_secs());
        assert_eq!(seconds, (1, 2));
    }
}
