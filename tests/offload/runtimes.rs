use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Inline, Pool, TokioBlocking},
};

use crate::support::{TestResult, eventually, hold, one_thread, pools, runtime, soon};

/// Calls a handler that uses a timer, `spawn` and `spawn_blocking`.
async fn uses_tokio(pool: Arc<dyn Pool>) {
    let service = OffloadLayer::new(pool).reject(RejectWithError).layer(service_fn(async |n: u32| {
        tokio::time::sleep(Duration::from_millis(1)).await; // uses the timer
        let spawned = tokio::spawn(async move { n + 1 }).await.unwrap();
        TestResult::Ok(spawned + tokio::task::spawn_blocking(|| 1).await.unwrap())
    }));
    assert_eq!(soon(service.oneshot(1)).await.unwrap(), 3);
}

#[tokio::test(flavor = "current_thread")]
async fn tokio_works_in_handlers_of_a_current_thread_runtime() {
    for pool in pools(1, 8) {
        uses_tokio(pool).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_works_in_handlers_of_a_multi_thread_runtime() {
    for pool in pools(1, 8) {
        uses_tokio(pool).await;
    }
}

#[tokio::test]
async fn block_on_in_a_handler_works() {
    let pool = one_thread();
    let result = pool.run(|| {
        tokio::runtime::Handle::current().block_on(async {
            tokio::task::yield_now().await;
            5
        })
    });
    assert_eq!(soon(result).await, Ok(5));
}

/// The runtime has no timer, or is shut down. Tokio's timer panics in both cases.
#[test]
fn wait_without_a_timer_is_rejected() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject_with(Err).wait(Duration::from_secs(60));
    let service = layer.layer(service_fn_blocking(|n: u32| Ok::<_, CallError>(n)));
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

/// Another executor drives the caller, and the handler does not use tokio.
#[test]
fn pool_works_outside_of_a_runtime() {
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let pools: [Arc<dyn Pool>; 3] =
        [Arc::new(one_thread()), Arc::new(tower_offload::pool::Rayon::new(rayon)), Arc::new(Inline::new())];
    for pool in pools {
        let service = OffloadLayer::new(pool).reject(RejectWithError).layer(service_fn(async |n: u32| {
            let (sender, receiver) = oneshot::channel();
            std::thread::spawn(move || sender.send(n + 1));
            TestResult::Ok(receiver.await.unwrap())
        }));
        assert_eq!(pollster::block_on(service.oneshot(1)).unwrap(), 2);
    }
}

#[test]
fn wait_outside_of_a_runtime_is_rejected() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).max_in_flight(1).wait(Duration::from_secs(60));
    let pending = layer.layer(service_fn(async |()| std::future::pending::<TestResult<()>>().await));
    let mut first = tokio_test::task::spawn(pending.clone().oneshot(()));
    tokio_test::assert_pending!(first.poll());
    let rejected = tokio_test::assert_ready_err!(tokio_test::task::spawn(pending.oneshot(())).poll());
    assert_eq!(rejected.downcast_ref(), Some(&CallError::NoRuntime));
}

#[test]
fn pool_may_be_dropped_inside_and_outside_of_a_runtime() {
    let outside = ThreadPool::cpu();
    let inside = runtime().block_on(async move {
        assert_eq!(soon(outside.run(|| 1)).await, Ok(1));
        drop(outside);
        let pool = ThreadPool::blocking(2);
        assert_eq!(soon(pool.run(|| 2)).await, Ok(2));
        (pool, TokioBlocking::new(1))
    });
    drop(inside);
    // The drop does not wait for a running and a queued call.
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

/// The calls end, and the process neither hangs nor aborts.
#[test]
fn runtime_may_be_dropped_while_calls_run_and_wait() {
    for kind in 0..4 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (pool, held) = runtime.block_on(async {
            let pool = pools(1, 8).remove(kind);
            let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn(async |()| {
                tokio::time::sleep(Duration::from_secs(3600)).await; // longer than the test
                TestResult::Ok(())
            }));
            tokio::spawn(service.clone().oneshot(())); // waits for a timer of that runtime
            eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
            let held = hold(&pool).await;
            tokio::spawn(service.oneshot(())); // queued
            let waiting = OffloadLayer::new(pool.clone())
                .reject(RejectWithError)
                .max_in_flight(1)
                .wait(Duration::from_secs(3600));
            for _ in 0..2 {
                tokio::spawn(waiting.layer(service_fn_blocking(|()| TestResult::Ok(()))).oneshot(())); // the second one waits for a permit
            }
            eventually(|| pool.admission().stats().in_flight == 4).await;
            (pool, held)
        });
        // `drop` would wait for tokio's blocking threads, one of which is held.
        runtime.shutdown_background();
        let other = self::runtime();
        other.block_on(async {
            held.release().await.unwrap();
            eventually(|| pool.admission().stats().in_flight == 0).await;
        });
    }
}

/// The call comes from another runtime.
#[test]
fn tokio_pool_of_a_dropped_runtime_answers_closed() {
    let first = runtime();
    let pool = first.block_on(async { TokioBlocking::new(1) });
    drop(first);
    runtime().block_on(async {
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Closed));
        assert_eq!(pool.stats().in_flight, 0);
    });
}

/// No thread with such a stack can be started. Tokio panics after it has queued the task.
#[test]
fn tokio_pool_without_a_thread_answers_overloaded() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(1 << 62).build().unwrap();
    runtime.block_on(async {
        let pool = TokioBlocking::new(2);
        let calls: Vec<_> = (0..3).map(|_| pool.run(|| ())).collect();
        for call in calls {
            assert_eq!(soon(call).await, Err(CallError::Overloaded));
        }
        let cancelled = pool.run(|| ());
        drop(cancelled);
        let stats = pool.stats();
        assert_eq!((stats.in_flight, stats.queued, stats.permits_in_use, stats.started), (0, 0, 0, 0), "{stats:?}");
        assert!(soon(pool.shutdown(Duration::MAX)).await.is_empty());
    });
}

/// With these pools tokio does not advance the clock while work runs.
#[tokio::test(start_paused = true)]
async fn paused_clock_works_with_inline_and_tokio_blocking() {
    let pools: [Arc<dyn Pool>; 2] = [Arc::new(Inline::new()), Arc::new(TokioBlocking::new(1))];
    for pool in pools {
        let service = OffloadLayer::new(pool).reject(RejectWithError).layer(service_fn(async |()| {
            tokio::time::sleep(Duration::from_secs(3600)).await; // longer than the test
            TestResult::Ok(())
        }));
        let started = tokio::time::Instant::now();
        service.oneshot(()).await.unwrap();
        assert_eq!(started.elapsed().as_secs(), 3600);
    }
}
