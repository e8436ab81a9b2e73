//! A busy pool wakes its callers in batches, from a task in their runtime. These tests cover
//! callers that this task cannot reach, because it does not run while they wait.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::mpsc,
    thread,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{runtime, task};
use tower_offload::{CallError, ThreadPool, pool::Pool};

/// The number of concurrent callers, large enough to keep the wake list nonempty.
const CALLERS: usize = 64;
const CALLS: u64 = 200;

fn pool() -> ThreadPool {
    ThreadPool::builder().threads(1).queue_capacity(4096).build().unwrap()
}

fn current_thread() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `scenario` on a new thread and fails if it hangs.
fn ends(scenario: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = thread::spawn(move || {
        scenario();
        done.send(()).unwrap();
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Ok(()) => {}
        Err(mpsc::RecvTimeoutError::Disconnected) => thread.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a caller is still waiting"),
    }
}

async fn call(pool: &ThreadPool) {
    pool.run(|| ()).await.unwrap();
}

/// Spawns tasks that keep the pool busy with `CALLS` calls each.
fn busy(pool: &ThreadPool) -> Vec<task::JoinHandle<()>> {
    let caller = |_| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for _ in 0..CALLS {
                call(&pool).await;
            }
        })
    };
    (0..CALLERS).map(caller).collect()
}

async fn all(tasks: Vec<task::JoinHandle<()>>) {
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn every_caller_of_a_busy_pool_is_woken() {
    for runtime in [current_thread(), runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()] {
        ends(move || runtime.block_on(async { all(busy(&pool())).await }));
    }
}

#[test]
fn caller_that_blocks_its_runtime_is_woken() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            let tasks = busy(&pool);
            let blocking = tokio::spawn({
                let pool = pool.clone();
                async move {
                    for _ in 0..CALLS {
                        pollster::block_on(call(&pool)); // no other task of this runtime can run
                        task::yield_now().await;
                    }
                }
            });
            blocking.await.unwrap();
            all(tasks).await;
        });
    });
}

#[test]
fn caller_of_many_concurrent_calls_is_woken() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            let tasks = busy(&pool);
            for _ in 0..20 {
                let calls: FuturesUnordered<_> = (0..CALLERS).map(|_| pool.run(|| ())).collect();
                assert_eq!(calls.count().await, CALLERS);
            }
            all(tasks).await;
        });
    });
}

#[test]
fn call_awaited_in_another_task_or_runtime_is_woken() {
    ends(|| {
        let (pool, other) = (pool(), current_thread());
        current_thread().block_on(async {
            let tasks = busy(&pool);
            let calls: Vec<_> = (0..CALLERS).map(|_| pool.run(|| ())).collect();
            for call in calls {
                assert_eq!(tokio::spawn(call).await.unwrap(), Ok(()));
            }
            let calls: Vec<_> = (0..CALLERS).map(|_| pool.run(|| ())).collect();
            let there = thread::spawn(move || {
                other.block_on(async {
                    for call in calls {
                        assert_eq!(call.await, Ok(()));
                    }
                });
            });
            all(tasks).await;
            there.join().unwrap();
        });
    });
}

/// The wake task of that runtime is never polled again, but the calls appear to come from the
/// runtime's tasks.
#[test]
fn calls_in_a_runtime_that_is_not_driven_are_woken() {
    ends(|| {
        let (pool, asleep) = (pool(), current_thread());
        asleep.block_on(async { all(busy(&pool)).await });
        let local = task::LocalSet::new();
        let tasks: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (pool, asleep) = (pool.clone(), asleep.handle().clone());
                local.spawn_local(async move {
                    for _ in 0..CALLS {
                        let mut call = pin!(call(&pool));
                        poll_fn(|cx| {
                            let _inside = asleep.enter();
                            call.as_mut().poll(cx)
                        })
                        .await;
                    }
                })
            })
            .collect();
        current_thread().block_on(local.run_until(all(tasks)));
    });
}

#[test]
fn runtime_shutdown_does_not_affect_other_callers() {
    ends(|| {
        let pool = pool();
        for _ in 0..20 {
            let gone = current_thread();
            gone.spawn({
                let pool = pool.clone();
                async move { all(busy(&pool)).await }
            });
            gone.block_on(async { task::yield_now().await });
            gone.shutdown_background();
        }
        current_thread().block_on(async { all(busy(&pool)).await });
    });
}

#[test]
fn callers_are_woken_when_the_pool_is_dropped() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            let calls: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(pool.run(|| ()))).collect();
            let report = pool.shutdown(Duration::from_secs(60)).await;
            assert!(report.is_empty(), "{report}");
            drop(pool);
            for call in calls {
                assert!(matches!(call.await.unwrap(), Ok(()) | Err(CallError::Closed)));
            }
        });
    });
}

/// The wake task is in a runtime that is blocked, and the only thread of the pool waits for a
/// caller in the batch. Only the helper thread of the pool can wake that caller.
#[test]
fn batched_wake_does_not_deadlock_on_its_own_caller() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            all(busy(&pool)).await; // the pool has a wake task in this runtime now
            let blocks_the_runtime = tokio::spawn(async move {
                let local = task::LocalSet::new();
                for _ in 0..10 {
                    let (release, released) = mpsc::channel::<()>();
                    let held = local.spawn_local({
                        let pool = pool.clone();
                        async move {
                            let while_two_wait = pool.clone();
                            let held = pool.run(move || while while_two_wait.stats().queued < 2 {});
                            held.await.unwrap();
                        }
                    });
                    let first = local.spawn_local({
                        let pool = pool.clone();
                        async move {
                            call(&pool).await;
                            release.send(()).unwrap();
                        }
                    });
                    let second = local.spawn_local({
                        let pool = pool.clone();
                        async move { pool.run(move || released.recv().unwrap()).await.unwrap() }
                    });
                    pollster::block_on(local.run_until(all(vec![held, first, second])));
                }
            });
            blocks_the_runtime.await.unwrap();
        });
    });
}
