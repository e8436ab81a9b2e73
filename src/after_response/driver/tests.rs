#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex, atomic::AtomicU64};

use http::Version;
use tokio::{runtime, task::yield_now};

use super::*;
use crate::{
    after_response::{FlushOutcome, TestResponse},
    background::Background,
    pool::Inline,
};

/// Flushes responses at once that have registered this number of hooks each, and returns the
/// responses in the order in which their hooks ran.
async fn run_hooks(hooks: &[usize]) -> Vec<usize> {
    let background = Background::builder().pool(Inline::new()).build();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut settled = SettledExchanges::default();
    for (number, hooks) in hooks.iter().enumerate() {
        let (response, waiter) = TestResponse::new(Version::HTTP_2);
        for _ in 0..*hooks {
            let order = order.clone();
            response.handle(&background).hook(move |_| order.lock().unwrap().push(number));
        }
        response.end();
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
    assert_eq!(run_hooks(&[1, 0, 2, 1]).await, [0, 2, 2, 3]);
}

#[tokio::test]
async fn response_with_many_hooks_does_not_hold_up_the_others() {
    let order = run_hooks(&[STEPS_PER_POLL + 3, 1, 1]).await;
    let expected = [vec![0; STEPS_PER_POLL], vec![1, 2], vec![0; 3]].concat();
    assert_eq!(order, expected);
}
