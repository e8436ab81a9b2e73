//! Unusual users of a pool, of a layer and of a background: reentrancy, values whose methods panic,
//! shutdowns in every state.

use std::{
    convert::Infallible,
    future::{self, Future},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{Background, CallError, OffloadLayer, Priority, ThreadPool, offload::RejectWithError, pool::Pool};

use crate::support::{eventually, hold, pools, runtime, soon};

fn layer(pool: impl Pool) -> OffloadLayer<RejectWithError> {
    OffloadLayer::new(pool).reject(RejectWithError)
}

#[tokio::test]
async fn a_pool_can_be_dropped_by_its_own_work() {
    for pool in pools(1, 8) {
        let mine = pool.clone();
        let ran = pool.run(move || drop(mine));
        let next = pool.run(|| 2);
        drop(pool);
        assert_eq!((soon(ran).await, soon(next).await), (Ok(()), Ok(2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_can_be_shut_down_by_its_own_work() {
    for pool in pools(2, 8) {
        let (mine, handle) = (pool.clone(), tokio::runtime::Handle::current());
        let report = soon(pool.run(move || handle.block_on(mine.shutdown(Duration::from_millis(50))))).await.unwrap();
        assert_eq!(report.running, 1, "{report:?}"); // the call that waits
        assert_eq!(soon(pool.run(|| 1)).await, Err(CallError::Closed));
        assert!(soon(pool.shutdown(Duration::from_secs(10))).await.is_empty());
    }
}

#[tokio::test]
async fn work_can_submit_work_to_its_own_pool() {
    for pool in pools(1, 8) {
        let mine = pool.clone();
        let inner = soon(pool.run(move || mine.run(|| 7))).await.unwrap();
        assert_eq!(soon(inner).await, Ok(7));
    }
}

/// A future that submits a call from its own drop.
struct SubmitsInDrop<P: Pool + Clone>(P, Arc<AtomicUsize>);

impl<P: Pool + Clone> Drop for SubmitsInDrop<P> {
    fn drop(&mut self) {
        let count = self.1.clone();
        drop(
            tokio::runtime::Handle::try_current()
                .map(|runtime| runtime.spawn(self.0.run(move || count.fetch_add(1, SeqCst)))),
        );
    }
}

#[tokio::test]
async fn a_drop_can_submit_a_call_to_its_pool() {
    for pool in pools(1, 8) {
        let count = Arc::new(AtomicUsize::new(0));
        let value = SubmitsInDrop(pool.clone(), count.clone());
        soon(pool.run(move || drop(value))).await.unwrap();
        eventually(|| count.load(SeqCst) == 1).await;
        // Also if the call is dropped in the queue.
        let held = hold(&pool).await;
        let value = SubmitsInDrop(pool.clone(), count.clone());
        drop(pool.run(move || drop(value)));
        held.release().await.unwrap();
        eventually(|| count.load(SeqCst) == 2).await;
    }
}

/// Wakes itself from another thread while it is polled, and completes at the 1000th poll.
struct WakesWhilePolled(usize);

impl Future for WakesWhilePolled {
    type Output = Result<usize, Infallible>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0 += 1;
        let waker = context.waker().clone();
        if self.0.is_multiple_of(100) {
            std::thread::spawn(move || waker.wake()).join().unwrap();
        } else {
            waker.wake_by_ref();
            waker.wake();
        }
        if self.0 == 1000 { Poll::Ready(Ok(self.0)) } else { Poll::Pending }
    }
}

#[tokio::test]
async fn wakes_during_a_poll_are_not_lost() {
    for pool in pools(2, 8) {
        let service = layer(pool).layer(service_fn(|()| WakesWhilePolled(0)));
        assert_eq!(soon(service.oneshot(())).await.unwrap(), 1000);
    }
}

#[tokio::test]
async fn wakers_kept_after_the_end_do_nothing() {
    for pool in pools(1, 8) {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keep = kept.clone();
        let service = layer(pool.clone()).layer(service_fn(move |()| {
            let keep = keep.clone();
            future::poll_fn(move |context| {
                keep.lock().unwrap().push(context.waker().clone());
                Poll::Ready(Ok::<_, Infallible>(()))
            })
        }));
        soon(service.oneshot(())).await.unwrap();
        assert!(soon(pool.shutdown(Duration::from_secs(10))).await.is_empty());
        for waker in kept.lock().unwrap().drain(..) {
            waker.wake_by_ref();
            let other = waker.clone();
            assert!(other.will_wake(&waker));
            waker.wake();
            drop(other);
        }
        assert_eq!(pool.admission().stats().panicked, 0);
    }
}

#[tokio::test]
async fn thread_locals_may_use_the_pool_when_a_thread_ends() {
    struct Submits(ThreadPool, Arc<AtomicUsize>);
    impl Drop for Submits {
        fn drop(&mut self) {
            self.1.fetch_add(1, SeqCst);
            drop(self.0.run(|| ()));
        }
    }
    thread_local!(static SUBMITS: std::cell::RefCell<Option<Submits>> = const { std::cell::RefCell::new(None) });
    let pool =
        ThreadPool::builder().min_threads(0).max_threads(1).keep_alive(Duration::from_millis(1)).build().unwrap();
    let (mine, count) = (pool.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    soon(pool.run(move || {
        SUBMITS.with(|it| *it.borrow_mut() = Some(Submits(mine, counted)));
    }))
    .await
    .unwrap();
    eventually(|| count.load(SeqCst) == 1).await;
    assert_eq!(soon(pool.run(|| 3)).await, Ok(3));
    assert!(soon(pool.shutdown(Duration::from_secs(10))).await.is_empty());
}

#[tokio::test]
async fn a_zero_shutdown_of_an_idle_pool_is_clean() {
    for pool in pools(1, 8) {
        assert!(soon(pool.shutdown(Duration::ZERO)).await.is_empty());
        assert!(soon(pool.shutdown(Duration::ZERO)).await.is_empty());
        assert!(soon(pool.shutdown(Duration::MAX)).await.is_empty());
    }
}

#[tokio::test]
async fn concurrent_shutdowns_all_end() {
    for pool in pools(1, 8) {
        let held = hold(&pool).await;
        let queued = pool.run(|| 1);
        let mut shutdowns: Vec<_> = (0..20)
            .map(|number| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.shutdown(Duration::from_millis(number * 10)).await })
            })
            .collect();
        // Some have timed out when the call ends, and others have not.
        for shutdown in shutdowns.drain(..6) {
            soon(shutdown).await.unwrap();
        }
        held.release().await.unwrap();
        for shutdown in shutdowns {
            soon(shutdown).await.unwrap();
        }
        assert_eq!(soon(queued).await, Err(CallError::Closed)); // the first timeout was zero
    }
}

#[tokio::test]
async fn a_hundred_thousand_queued_calls_all_run() {
    for pool in pools(2, 100_000) {
        let held = (hold(&pool).await, hold(&pool).await);
        let calls: Vec<_> = (0..100_000_usize).map(|number| pool.run(move || number)).collect();
        assert_eq!(soon(pool.run(|| 0)).await, Err(CallError::Overloaded));
        let (first, second) = held;
        first.release().await.unwrap();
        second.release().await.unwrap();
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(soon(call).await, Ok(number));
        }
        let stats = pool.admission().stats();
        assert_eq!((stats.queued, stats.active, stats.rejected), (0, 0, 1), "{stats:?}");
    }
}

#[tokio::test]
async fn layers_around_layers_of_three_pools_work() {
    let [a, b, c] = [(); 3].map(|()| ThreadPool::builder().threads(1).build().unwrap());
    let service = ServiceBuilder::new()
        .boxed_clone()
        .layer(layer(a.clone()))
        .buffer(2)
        .layer(layer(b))
        .concurrency_limit(1)
        .layer(layer(c))
        .layer(layer(a))
        .service(service_fn(async |n: u32| Ok::<_, Infallible>(n + 1)));
    let calls = (0..50).map(|n| tokio::spawn(service.clone().oneshot(n)));
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(soon(call).await.unwrap().unwrap(), n as u32 + 1);
    }
}

#[tokio::test]
async fn steered_and_boxed_services_answer() {
    let one = layer(ThreadPool::builder().threads(1).build().unwrap());
    let services = (0..3).map(|number| {
        tower::util::BoxService::new(
            one.layer(service_fn(move |n: usize| async move { Ok::<_, Infallible>(n * 10 + number) })),
        )
    });
    let mut steer = tower::steer::Steer::new(services, |n: &usize, _: &[_]| n % 3);
    for n in 0..30 {
        assert_eq!(steer.ready().await.unwrap().call(n).await.unwrap(), n * 10 + n % 3);
    }
}

#[test]
fn calls_outlive_the_runtime_that_made_them() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let runtime_one = runtime();
    let (call,) = runtime_one.block_on(async {
        let held = hold(&pool).await;
        let call = pool.run(|| 5);
        let _ = held.release().await;
        (call,)
    });
    drop(runtime_one);
    assert_eq!(runtime().block_on(soon(call)), Ok(5));
}

#[test]
fn a_local_set_can_await_calls() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let set = tokio::task::LocalSet::new();
    let sum = set.block_on(&runtime(), async {
        let tasks: Vec<_> = (0..50_u32)
            .map(|n| {
                let pool = pool.clone();
                tokio::task::spawn_local(async move { *std::rc::Rc::new(pool.run(move || n).await.unwrap()) })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        sum
    });
    assert_eq!(sum, 1225);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn block_in_place_around_a_call_ends() {
    for pool in pools(1, 8) {
        let result = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(soon(pool.run(|| 1))));
        assert_eq!(result, Ok(1));
    }
}

#[tokio::test]
async fn a_call_polled_after_its_end_panics_or_is_pending() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let mut call = Box::pin(pool.run(|| 1));
    assert_eq!(soon(call.as_mut()).await, Ok(1));
    let again = tokio::spawn(call);
    let error = again.await.unwrap_err();
    assert!(error.is_panic());
    assert_eq!(soon(pool.run(|| 2)).await, Ok(2));
}

#[tokio::test]
async fn every_priority_of_a_queue_of_one_is_answered() {
    for pool in pools(1, 1) {
        let held = hold(&pool).await;
        let low = pool.run_with_priority(Priority::Low, || 1);
        let high = pool.run_with_priority(Priority::High, || 2);
        let normal = pool.run(|| 3);
        held.release().await.unwrap();
        let answers = [soon(low).await.is_ok(), soon(high).await.is_ok(), soon(normal).await.is_ok()];
        assert_eq!(answers.iter().filter(|is_ok| **is_ok).count(), 1, "{answers:?}");
        assert!(soon(pool.shutdown(Duration::from_secs(5))).await.is_empty());
    }
}

#[tokio::test]
async fn a_background_can_be_shut_down_by_its_own_task() {
    let background = Background::default();
    let mine = background.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    background
        .spawn(async move {
            let report = mine.shutdown(Duration::from_millis(50)).await;
            let _ = sender.send(report);
        })
        .unwrap();
    let report = soon(receiver).await;
    // The task waits for itself: it is cancelled by its own shutdown, or reported.
    if let Ok(report) = report {
        assert_eq!(report.still_running.len(), 1, "{report:?}");
    }
    assert!(soon(background.shutdown(Duration::from_secs(10))).await.still_running.is_empty());
}

#[tokio::test]
async fn a_failure_handler_can_use_its_background() {
    let (slot, seen) = (Arc::new(Mutex::new(None::<Background>)), Arc::new(AtomicUsize::new(0)));
    let (own, count) = (slot.clone(), seen.clone());
    let background = Background::builder()
        .on_failure(move |_| {
            let background = own.lock().unwrap().clone().unwrap();
            if count.fetch_add(1, SeqCst) < 100 {
                let _ = background.task("again").spawn_blocking(|| Err::<(), _>("again"));
                background.cancel("nothing");
                let _ = background.stats();
            }
        })
        .build();
    *slot.lock().unwrap() = Some(background.clone());
    background.spawn_blocking(|| Err::<(), _>("first")).unwrap();
    eventually(|| seen.load(SeqCst) == 101).await;
    assert!(soon(background.shutdown(Duration::from_secs(10))).await.is_clean());
    *slot.lock().unwrap() = None;
}

#[tokio::test]
async fn ten_thousand_cancelled_tasks_leave_nothing() {
    let background = Background::builder().max_tasks(20_000).max_running(1).pool(ThreadPool::blocking(1)).build();
    let (enter, entered) = std::sync::mpsc::channel::<()>();
    background.spawn_blocking(move || entered.recv().unwrap_or_default()).unwrap();
    let handles: Vec<_> = (0..10_000).map(|_| background.task("x").spawn(future::pending::<()>()).unwrap()).collect();
    assert_eq!(background.cancel("x"), 10_000);
    assert!(handles.iter().all(|handle| !handle.cancel()));
    drop(enter);
    let report = soon(background.shutdown(Duration::from_secs(10))).await;
    let stats = background.stats();
    assert_eq!(
        (stats.cancelled, stats.queued, stats.running, report.still_running.len()),
        (10_000, 0, 0, 0),
        "{stats:?}"
    );
}

#[tokio::test]
async fn an_error_whose_methods_panic_ends_its_task_once() {
    struct Bomb;
    impl std::fmt::Display for Bomb {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("display")
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("drop");
        }
    }
    struct DropBomb;
    impl std::fmt::Display for DropBomb {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bomb")
        }
    }
    impl Drop for DropBomb {
        fn drop(&mut self) {
            panic!("drop");
        }
    }
    let background = Background::builder().max_running(1).build();
    background.spawn_blocking(|| Err::<(), _>(Bomb)).unwrap();
    background.spawn(async { Err::<(), _>(Bomb) }).unwrap();
    background.task("").on_runtime().spawn(async { Err::<(), _>(Bomb) }).unwrap();
    background.spawn_blocking(|| Err::<(), _>(DropBomb)).unwrap();
    background.spawn(async { Err::<(), _>(DropBomb) }).unwrap();
    background.task("").on_runtime().spawn(async { Err::<(), _>(DropBomb) }).unwrap();
    background.spawn_blocking(|| ()).unwrap();
    assert!(soon(background.shutdown(Duration::from_secs(10))).await.still_running.is_empty());
    let stats = background.stats();
    assert_eq!((stats.completed, stats.failed), (1, 6), "{stats:?}");
}
