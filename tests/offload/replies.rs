//! Callers of a busy pool are woken together, by a task in their runtime. Nobody may wait for that task who would not have had
//! to wait for the runtime anyway: here are those whom it could have kept waiting.

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

/// Callers at once, of a pool of one thread: enough to keep the list from being empty.
const CALLERS: usize = 64;
const CALLS: u64 = 200;

fn pool() -> ThreadPool {
    ThreadPool::builder().threads(1).queue_capacity(4096).build().unwrap()
}

fn current_thread() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs it on a thread of its own, and fails if that hangs.
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

/// Tasks that keep the pool busy, each with so many calls.
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
fn every_caller_of_a_busy_pool_is_answered() {
    for runtime in [current_thread(), runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()] {
        ends(move || runtime.block_on(async { all(busy(&pool())).await }));
    }
}

#[test]
fn a_task_that_blocks_the_only_thread_of_its_runtime_is_answered() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            let tasks = busy(&pool);
            let blocking = tokio::spawn({
                let pool = pool.clone();
                async move {
                    for _ in 0..CALLS {
                        pollster::block_on(call(&pool)); // nothing else in this runtime runs meanwhile
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
fn a_task_that_awaits_many_calls_at_once_is_answered() {
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
fn a_call_that_is_awaited_in_another_task_or_runtime_is_answered() {
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

/// Its carrier was polled once and never will be again, and yet the calls look as if they came from its tasks.
#[test]
fn calls_made_inside_a_runtime_that_nobody_drives_any_more_are_answered() {
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
fn callers_of_a_runtime_that_shuts_down_are_let_go_and_others_are_answered() {
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
fn callers_are_answered_when_the_pool_goes_away() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            let calls: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(pool.run(|| ()))).collect();
            let left = pool.shutdown(Duration::from_secs(60)).await;
            assert!(left.is_empty(), "{left}");
            drop(pool);
            for call in calls {
                assert!(matches!(call.await.unwrap(), Ok(()) | Err(CallError::Closed)));
            }
        });
    });
}

/// The list is in a runtime that cannot run, its first caller is one of those who wait in it, and the pool's only thread waits
/// for that caller: nobody of all these can move, but whoever watches.
#[test]
fn a_call_that_waits_for_a_caller_in_the_list_does_not_wait_for_ever() {
    ends(|| {
        current_thread().block_on(async {
            let pool = pool();
            all(busy(&pool)).await; // from here on the runtime is known
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
