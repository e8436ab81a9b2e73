//! Queue policies, and the expected wait that rejected callers receive.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, Response, StatusCode};
use tokio::sync::Notify;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    Background, CallError, OffloadLayer, ThreadPool,
    axum::blocking,
    offload::{Reject, RejectWithError, service_fn_blocking},
    pool::{Codel, Pool, QueuePolicy},
};

use crate::support::{
    TestResult, eventually, hold, hold_with_retry, one_thread, pools, shedding_pools, soon, too_long,
};

/// Records the thread that drops it.
struct Traced(Arc<Mutex<Option<ThreadId>>>);

impl Drop for Traced {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(thread::current().id());
    }
}

#[tokio::test]
async fn call_that_waited_too_long_is_shed() {
    for pool in shedding_pools(8) {
        let held = hold_with_retry(&pool).await;
        let before = pool.admission().stats();
        let (ran, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let calls: Vec<_> = (0..7)
            .map(|_| {
                let (ran, traced) = (ran.clone(), Traced(dropped.clone()));
                pool.run(move || {
                    let _traced = traced;
                    ran.store(true, SeqCst);
                })
            })
            .collect();
        let newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        for call in calls {
            assert_eq!(soon(call).await, Err(CallError::Expired));
        }
        assert_eq!(soon(newest).await, Ok(()), "the newest call is not shed");
        assert!(!ran.load(SeqCst));
        let dropped = dropped.lock().unwrap().expect("the work is dropped before its caller is woken");
        assert_ne!(dropped, thread::current().id(), "dropped on the pool");
        let stats = pool.admission().stats();
        assert_eq!((stats.queued, stats.permits_in_use, stats.in_flight), (0, 0, 0), "{stats:?}");
        assert_eq!((stats.rejected, stats.started), (before.rejected + 7, before.started + 1));
    }
}

#[tokio::test]
async fn layer_answers_a_shed_call_and_releases_its_permit() {
    for pool in shedding_pools(8) {
        let layer = OffloadLayer::new(pool.clone()).max_in_flight(1);
        let mut service = layer.layer(service_fn(async |_: Request<()>| TestResult::Ok(Response::new(()))));
        let held = hold_with_retry(&pool).await;
        let call = service.ready().await.unwrap().call(Request::new(()));
        let newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        soon(newest).await.unwrap();
        let response = soon(call).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        // The permit is available again. A slow machine may shed some of these calls too.
        while !soon(service.ready().await.unwrap().call(Request::new(()))).await.unwrap().status().is_success() {}
    }
}

#[tokio::test]
async fn shed_call_fails_with_a_typed_error() {
    for pool in shedding_pools(8) {
        let service =
            OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn_blocking(|()| TestResult::Ok(())));
        let held = hold_with_retry(&pool).await;
        let call = tokio::spawn(service.oneshot(()));
        eventually(|| pool.admission().stats().queued == 1).await;
        let _newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        let error = soon(call).await.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Expired));
    }
}

#[tokio::test]
async fn started_call_is_never_shed() {
    for pool in shedding_pools(8) {
        let wake = Arc::new(Notify::new());
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn({
            let wake = wake.clone();
            move |()| {
                let wake = wake.clone();
                async move {
                    wake.notified().await;
                    TestResult::Ok("completed")
                }
            }
        }));
        let parked = loop {
            let parked = tokio::spawn(service.clone().oneshot(()));
            let stats = || pool.admission().stats();
            eventually(|| parked.is_finished() || (stats().started, stats().active) == (1, 0)).await;
            if !parked.is_finished() {
                break parked; // a slow machine may shed it before it starts
            }
        };
        too_long().await;
        let held = hold_with_retry(&pool).await;
        wake.notify_one();
        eventually(|| pool.admission().stats().woken == 1).await;
        let new = pool.run(|| ());
        let _newest = pool.run(|| ());
        too_long().await;
        held.release().await.unwrap();
        assert_eq!(soon(parked).await.unwrap().unwrap(), "completed");
        assert_eq!(soon(new).await, Err(CallError::Expired));
    }
}

#[tokio::test]
async fn fifo_never_sheds() {
    for pool in pools(1, 8) {
        let held = hold(&pool).await;
        let call = pool.run(|| 1);
        too_long().await;
        held.release().await.unwrap();
        assert_eq!(soon(call).await, Ok(1));
    }
}

/// Returns `retry_after` as the response.
#[derive(Clone)]
struct RetryAfter;

impl<E> Reject<(), Duration, E> for RetryAfter {
    type Error = E;
    type Hint = ();

    fn hint(&self, (): &()) {}

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, (): (), _: CallError, retry_after: Duration) -> Result<Duration, E> {
        Ok(retry_after)
    }
}

/// The wait of the last call that started is out of date if no call starts.
#[tokio::test]
async fn expected_wait_of_a_stuck_pool_is_that_of_its_oldest_call() {
    for pool in pools(1, 1) {
        let service = OffloadLayer::new(pool.clone())
            .reject(RetryAfter)
            .layer(service_fn_blocking(|()| TestResult::Ok(Duration::ZERO)));
        let held = hold(&pool).await;
        let queued = pool.run(|| ());
        let started = tokio::time::Instant::now(); // after the call was queued
        let waited = Duration::from_millis(20) + pool.admission().expected_wait(); // longer than the first call waited
        while started.elapsed() < waited {
            tokio::task::yield_now().await; // the measured wait must take some time
        }
        assert!(pool.expected_wait() >= Duration::from_millis(20));
        assert!(pool.admission().expected_wait() < waited, "admission only knows calls that have started");
        let retry_after = soon(service.oneshot(())).await.unwrap();
        assert!(retry_after >= Duration::from_millis(20), "{retry_after:?}");
        assert!(retry_after < started.elapsed() + waited, "{retry_after:?}");
        held.release().await.unwrap();
        soon(queued).await.unwrap();
        assert!(pool.expected_wait() >= Duration::from_millis(20), "the wait of the last call that started");
        soon(pool.run(|| ())).await.unwrap();
    }
}

#[test]
fn impossible_policy_is_a_build_error() {
    let build = |codel: Codel| {
        let error = ThreadPool::builder().threads(1).queue_policy(codel).build().unwrap_err();
        assert!(error.is_configuration());
        error.to_string()
    };
    let (short, long) = (Duration::from_millis(1), Duration::from_millis(2));
    assert!(build(Codel::new(Duration::ZERO, long)).contains("target of zero"));
    let message = build(Codel::new(long, short));
    assert!(message.contains("interval 1ms") && message.contains("target 2ms"), "{message}");
    assert!(ThreadPool::builder().threads(1).queue_policy(QueuePolicy::Fifo).build().is_ok());
    assert!(ThreadPool::builder().threads(1).queue_policy(Codel::default()).build().is_ok());
}

#[tokio::test]
async fn shutdown_answers_closed_before_the_policy_sheds() {
    let pool = one_thread();
    let held = hold(&pool).await;
    let queued = pool.run(|| ());
    soon(pool.shutdown(Duration::ZERO)).await;
    assert_eq!(soon(queued).await, Err(CallError::Closed));
    held.release().await.unwrap();
}

/// A pool whose calls take as long as the test wants, in a runtime with a paused clock. Its calls
/// come through a layer.
struct Paced {
    pool: ThreadPool,
    release: std::sync::mpsc::Sender<()>,
    released: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
    calls: tokio::task::JoinSet<Result<(), CallError>>,
}

impl Paced {
    fn new() -> Self {
        let builder = ThreadPool::builder().threads(1);
        let (release, released) = std::sync::mpsc::channel();
        let released = Arc::new(Mutex::new(released));
        Self { pool: builder.build().unwrap(), release, released, calls: tokio::task::JoinSet::new() }
    }

    /// Returns work that ends when the test releases it.
    fn work(&self) -> impl FnOnce() + Clone + Send + Sync + 'static {
        let released = self.released.clone();
        move || released.lock().unwrap().recv().unwrap()
    }

    fn layer(&self) -> OffloadLayer<RejectWithError> {
        OffloadLayer::new(self.pool.clone()).reject(RejectWithError)
    }

    fn call(&mut self) {
        let work = self.work();
        let response = self
            .layer()
            .layer(service_fn_blocking(move |()| {
                work.clone()();
                TestResult::Ok(())
            }))
            .call(());
        self.calls.spawn(async { response.await.map_err(|error| *error.downcast_ref().unwrap()) });
    }

    fn call_of(&mut self, key: &'static str) {
        let (work, layer) = (self.work(), self.layer().fair_by_request(move |(): &()| key));
        let response = layer
            .layer(service_fn_blocking(move |()| {
                work.clone()();
                TestResult::Ok(())
            }))
            .call(());
        self.calls.spawn(async { response.await.map_err(|error| *error.downcast_ref().unwrap()) });
    }

    /// Makes a call without a layer.
    fn run(&mut self) {
        self.calls.spawn(self.pool.run(self.work()));
    }

    /// Lets calls arrive at three times the capacity until the pool is overloaded.
    async fn overload(&mut self) {
        while self.pool.stats().overloads == 0 {
            self.millisecond(3).await;
        }
        self.millisecond(0).await; // The worker sheds the excess.
        self.failed().await;
    }

    async fn end_calls(&self) {
        while self.pool.stats().in_flight > 0 {
            self.end_call().await;
        }
    }

    /// Ends one call, and waits until the thread has taken the next one.
    async fn end_call(&self) {
        let before = self.pool.stats();
        self.release.send(()).unwrap();
        eventually(|| {
            let now = self.pool.stats();
            now.completed > before.completed && (now.started > before.started || now.queued == 0)
        })
        .await;
    }

    /// Returns the number of calls that failed so far, and their errors.
    async fn failed(&mut self) -> Vec<CallError> {
        tokio::task::yield_now().await;
        std::iter::from_fn(|| self.calls.try_join_next()).filter_map(|call| call.unwrap().err()).collect()
    }

    /// One call ends in each millisecond, and `arrivals` begin.
    async fn millisecond(&mut self, arrivals: usize) {
        for _ in 0..arrivals {
            self.call();
            tokio::task::yield_now().await;
        }
        if self.pool.stats().in_flight > 0 {
            self.end_call().await;
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bursts_wait_and_steady_overload_is_rejected() {
    let mut paced = Paced::new();
    paced.millisecond(100).await;
    for _ in 0..110 {
        paced.millisecond(0).await;
    }
    assert_eq!((paced.pool.stats().completed, paced.failed().await), (100, vec![]), "the burst waits");

    for _ in 0..200 {
        paced.millisecond(2).await;
    }
    let stats = paced.pool.stats();
    assert_eq!(stats.overloads, 1);
    assert!(stats.queued <= 4, "{stats:?}");
    let failed = paced.failed().await;
    assert!(failed.contains(&CallError::Overloaded), "calls are rejected");
    assert!(failed.contains(&CallError::Expired), "the oldest were shed once");

    for _ in 0..200 {
        paced.millisecond(usize::from(paced.pool.stats().queued == 0)).await;
    }
    paced.failed().await;
    paced.millisecond(100).await;
    assert_eq!(paced.failed().await, [], "the pool accepts bursts again");
    for _ in 0..110 {
        paced.millisecond(0).await;
    }
    assert_eq!(paced.pool.stats().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn key_that_is_over_its_share_does_not_overload_the_pool() {
    let mut paced = Paced::new();
    for _ in 0..1000 {
        paced.call_of("greedy");
    }
    for _ in 0..300 {
        for _ in 0..3 {
            paced.call_of("greedy");
        }
        paced.millisecond(0).await;
    }
    let failed = paced.failed().await;
    assert!(failed.len() > 600 && failed.iter().all(|error| *error == CallError::KeyLimited), "{failed:?}");
    for _ in 0..20 {
        paced.call_of("quiet");
    }
    assert_eq!((paced.failed().await, paced.pool.stats().overloads), (vec![], 0), "the burst waits");
    paced.end_calls().await;
}

/// A program that is no server makes many calls at once and waits for their results.
#[tokio::test(start_paused = true)]
async fn calls_without_a_layer_are_no_overload_and_are_not_rejected_in_one() {
    let mut paced = Paced::new();
    for _ in 0..300 {
        (0..3).for_each(|_| paced.run());
        paced.millisecond(0).await;
    }
    assert_eq!((paced.failed().await, paced.pool.stats().overloads), (vec![], 0));
    paced.call();
    assert_eq!(paced.failed().await, [], "others are not locked out");
    paced.end_calls().await;

    paced.overload().await;
    (0..500).for_each(|_| paced.run());
    assert_eq!(paced.failed().await, []);
    paced.end_calls().await;
    assert_eq!(paced.failed().await, [], "nor are they shed");
}

#[tokio::test(start_paused = true)]
async fn background_on_an_overloaded_pool_loses_no_task() {
    let mut paced = Paced::new();
    paced.overload().await;
    let background = Background::builder().pool(paced.pool.clone()).build();
    for _ in 0..200 {
        background.spawn_blocking(paced.work()).unwrap();
        paced.millisecond(3).await;
    }
    assert!(paced.failed().await.contains(&CallError::Overloaded), "the pool is overloaded");
    paced.end_calls().await;
    let stats = background.stats();
    assert_eq!((stats.completed, stats.failed), (200, 0), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_of_blocking_handlers_are_rejected_during_an_overload() {
    let mut paced = Paced::new();
    paced.overload().await;
    let app: Router = Router::new().route("/", get(blocking(paced.pool.clone(), paced.work())));
    let mut responses = tokio::task::JoinSet::new();
    for _ in 0..10 {
        responses.spawn(app.clone().oneshot(Request::new(Body::empty())));
    }
    tokio::task::yield_now().await;
    let rejected = std::iter::from_fn(|| responses.try_join_next()).map(|response| response.unwrap().unwrap().status());
    let rejected: Vec<_> = rejected.collect();
    assert!(rejected.len() >= 6 && rejected.iter().all(|it| *it == StatusCode::SERVICE_UNAVAILABLE), "{rejected:?}");
    paced.end_calls().await;
}

#[tokio::test(start_paused = true)]
async fn reserved_permits_are_no_calls_that_wait() {
    let mut paced = Paced::new();
    paced.overload().await;
    let service = paced.layer().backpressure().layer(service_fn_blocking(|()| TestResult::Ok(())));
    let mut services: Vec<_> = (0..100).map(|_| service.clone()).collect();
    for service in &mut services {
        let ready = std::future::poll_fn(|cx| Service::<()>::poll_ready(service, cx));
        assert!(tokio_test::task::spawn(ready).poll().is_ready());
    }
    paced.end_calls().await;
    (0..4).for_each(|_| paced.call());
    assert_eq!(paced.failed().await, []);
    drop(services);
    paced.end_calls().await;
    assert_eq!(paced.pool.stats().permits_in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn subscriber_that_panics_at_an_overload_keeps_no_place_in_the_queue() {
    use tracing_subscriber::layer::SubscriberExt;
    struct Explosive;
    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Explosive {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            assert!(event.metadata().fields().field("overloads").is_none(), "a subscriber that panics");
        }
    }
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(Explosive));
    let mut paced = Paced::new();
    let mut panics = 0;
    // Tests beside this one may have disabled the event for all subscribers.
    while panics == 0 && paced.pool.stats().overloads == 0 {
        for _ in 0..3 {
            let call = std::panic::AssertUnwindSafe(|| paced.call());
            panics += usize::from(std::panic::catch_unwind(call).is_err());
        }
        paced.millisecond(0).await;
    }
    assert_eq!(paced.pool.stats().overloads, 1);
    paced.end_calls().await;
    assert_eq!(paced.pool.stats().permits_in_use, 0);
}
