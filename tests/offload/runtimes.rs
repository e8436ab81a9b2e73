use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{Typed, sync_fn},
    pool::{Inline, Pool, TokioBlocking},
};

use crate::support::{Answer, eventually, hold, one_thread, pools, runtime, soon};

/// Timers and `spawn` inside, then sync work.
async fn uses_tokio(pool: Arc<dyn Pool>) {
    let service = OffloadLayer::new(pool).reject(Typed).layer(service_fn(async |n: u32| {
        tokio::time::sleep(Duration::from_millis(1)).await; // the work's own, to use a timer
        let spawned = tokio::spawn(async move { n + 1 }).await.unwrap();
        Answer::Ok(spawned + tokio::task::spawn_blocking(|| 1).await.unwrap())
    }));
    assert_eq!(soon(service.oneshot(1)).await.unwrap(), 3);
}

#[tokio::test(flavor = "current_thread")]
async fn p9_tokio_works_inside_on_a_current_thread_runtime() {
    for pool in pools(1, 8) {
        uses_tokio(pool).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_tokio_works_inside_on_a_multi_thread_runtime() {
    for pool in pools(1, 8) {
        uses_tokio(pool).await;
    }
}

#[tokio::test]
async fn p9_block_on_in_a_handler_works() {
    let pool = one_thread();
    let answer = pool.run(|| {
        tokio::runtime::Handle::current().block_on(async {
            tokio::task::yield_now().await;
            5
        })
    });
    assert_eq!(soon(answer).await, Ok(5));
}

/// Tokio's timer panics in both cases.
#[test]
fn a_call_that_has_to_wait_where_there_is_no_timer_is_answered() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject_with(Err).wait(Duration::from_secs(60));
    let service = layer.layer(sync_fn(|n: u32| Ok::<_, CallError>(n)));
    let without_time = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let shut_down = runtime();
    let held = shut_down.block_on(hold(&pool));
    let queued = pool.run(|| ());
    assert_eq!(without_time.block_on(service.clone().oneshot(1)), Err(CallError::NoRuntime));

    let mut waiting = {
        let _inside = shut_down.enter();
        Box::pin(service.oneshot(2))
    };
    shut_down.block_on(async { assert!(futures_util::poll!(&mut waiting).is_pending()) });
    drop(shut_down);
    assert_eq!(pollster::block_on(waiting), Err(CallError::NoRuntime));
    drop(held);
    assert_eq!(pollster::block_on(queued), Ok(()));
}

/// No tokio anywhere: another executor drives the caller.
#[test]
fn p9_outside_a_runtime_it_works_if_nothing_inside_needs_tokio() {
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let pools: [Arc<dyn Pool>; 3] =
        [Arc::new(one_thread()), Arc::new(tower_offload::pool::Rayon::new(rayon)), Arc::new(Inline::new())];
    for pool in pools {
        let service = OffloadLayer::new(pool).reject(Typed).layer(service_fn(async |n: u32| {
            let (sender, receiver) = oneshot::channel();
            std::thread::spawn(move || sender.send(n + 1));
            Answer::Ok(receiver.await.unwrap())
        }));
        assert_eq!(pollster::block_on(service.oneshot(1)).unwrap(), 2);
    }
}

#[test]
fn p9_waiting_outside_a_runtime_is_a_typed_error_not_a_hang() {
    let layer = OffloadLayer::new(one_thread()).reject(Typed).max_in_flight(1).wait(Duration::from_secs(60));
    let pending = layer.layer(service_fn(async |()| std::future::pending::<Answer<()>>().await));
    let mut first = tokio_test::task::spawn(pending.clone().oneshot(()));
    tokio_test::assert_pending!(first.poll());
    let refused = tokio_test::assert_ready_err!(tokio_test::task::spawn(pending.oneshot(())).poll());
    assert_eq!(refused.downcast_ref(), Some(&CallError::NoRuntime));
}

#[test]
fn p10_a_pool_made_outside_a_runtime_may_be_dropped_inside_one_and_the_reverse() {
    let outside = ThreadPool::cpu();
    let inside = runtime().block_on(async move {
        assert_eq!(soon(outside.run(|| 1)).await, Ok(1));
        drop(outside);
        let pool = ThreadPool::blocking(2);
        assert_eq!(soon(pool.run(|| 2)).await, Ok(2));
        (pool, TokioBlocking::new(1))
    });
    drop(inside);
    // While a call runs, and while one is queued: the drop does not wait for them.
    let runtime = runtime();
    let (held, queued) = runtime.block_on(async {
        let pool = one_thread();
        let held = hold(&pool).await;
        let queued = pool.run(|| 3);
        drop(pool);
        (held, queued)
    });
    runtime.block_on(async {
        held.release().await.unwrap();
        assert_eq!(soon(queued).await, Ok(3));
    });
}

/// P19: no hang, no abort; callers that are left get an answer.
#[test]
fn p19_a_runtime_that_is_dropped_while_calls_run_and_wait() {
    for kind in 0..4 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (pool, held) = runtime.block_on(async {
            let pool = pools(1, 8).remove(kind);
            let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn(async |()| {
                tokio::time::sleep(Duration::from_secs(3600)).await; // for ever: nobody waits for it
                Answer::Ok(())
            }));
            tokio::spawn(service.clone().oneshot(())); // parked in a timer of that runtime
            eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
            let held = hold(&pool).await;
            tokio::spawn(service.oneshot(())); // queued
            let waiting =
                OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1).wait(Duration::from_secs(3600));
            for _ in 0..2 {
                tokio::spawn(waiting.layer(sync_fn(|()| Answer::Ok(()))).oneshot(())); // the second waits for a place
            }
            eventually(|| pool.admission().stats().in_flight == 4).await;
            (pool, held)
        });
        // Not `drop`: tokio waits for its own blocking threads, one of which is held.
        runtime.shutdown_background();
        let other = self::runtime();
        other.block_on(async {
            held.release().await.unwrap();
            eventually(|| pool.admission().stats().in_flight == 0).await;
        });
    }
}

/// The runtime that a `TokioBlocking` borrows its threads from is gone: calls from another one are answered.
#[test]
fn p19_a_tokio_pool_whose_runtime_is_gone_answers_closed() {
    let first = runtime();
    let pool = first.block_on(async { TokioBlocking::new(1) });
    drop(first);
    runtime().block_on(async {
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Closed));
        assert_eq!(pool.stats().in_flight, 0);
    });
}

/// A paused clock and real threads: `Inline` and `TokioBlocking` keep the clock still while work runs.
#[tokio::test(start_paused = true)]
async fn a_paused_clock_works_with_inline_and_tokio_blocking() {
    let pools: [Arc<dyn Pool>; 2] = [Arc::new(Inline::new()), Arc::new(TokioBlocking::new(1))];
    for pool in pools {
        let service = OffloadLayer::new(pool).reject(Typed).layer(service_fn(async |()| {
            tokio::time::sleep(Duration::from_secs(3600)).await; // for ever: nobody waits for it
            Answer::Ok(())
        }));
        let started = tokio::time::Instant::now();
        service.oneshot(()).await.unwrap();
        assert_eq!(started.elapsed().as_secs(), 3600);
    }
}
