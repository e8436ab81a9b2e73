//! Queue policies, and the expected wait that rejected callers receive.

use std::{
    sync::{Arc, Mutex},
    thread::{self, ThreadId},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use tower::{Service, ServiceExt};
use tower_layer::Layer;
use tower_offload::{
    Background, CallError, OffloadLayer, ThreadPool,
    axum::blocking,
    offload::{Reject, RejectWithError, service_fn_blocking},
    pool::{Pool, ThreadPoolBuilder},
};

use crate::support::{TestResult, eventually, hold, one_thread, pools, soon};

/// Request that records the thread that drops it, if its work did not run.
struct Traced {
    ran: bool,
    dropped: Arc<Mutex<Vec<ThreadId>>>,
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !self.ran {
            self.dropped.lock().unwrap().push(thread::current().id());
        }
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

#[tokio::test]
async fn shutdown_answers_closed() {
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
        Self::of(ThreadPool::builder().threads(1))
    }

    fn of(builder: ThreadPoolBuilder) -> Self {
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
    assert!(failed.len() > 100 && failed.iter().all(|error| *error == CallError::Overloaded), "{failed:?}");

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

#[tokio::test(start_paused = true)]
async fn oldest_calls_are_shed_on_the_pool_when_an_overload_starts() {
    let mut paced = Paced::new();
    let (work, dropped) = (paced.work(), Arc::new(Mutex::new(Vec::new())));
    let layer = paced.layer().max_in_flight(1000);
    let mut service = layer.layer(service_fn_blocking(move |mut request: Traced| {
        request.ran = true;
        work.clone()();
        TestResult::Ok(())
    }));
    for call in 1.. {
        let response = service.call(Traced { ran: false, dropped: dropped.clone() });
        paced.calls.spawn(async { response.await.map_err(|error| *error.downcast_ref().unwrap()) });
        if paced.pool.stats().overloads > 0 {
            break;
        }
        if call % 2 == 0 {
            paced.millisecond(0).await;
        }
    }
    assert_eq!(paced.failed().await, [], "no call is rejected before");
    let waiting = paced.pool.stats().queued as u64;
    paced.millisecond(0).await;
    let failed = paced.failed().await;
    assert!(failed.len() > 10 && failed.iter().all(|error| *error == CallError::Overloaded), "{failed:?}");
    let stats = paced.pool.stats();
    assert_eq!((stats.queued, stats.rejected), (4, waiting - 5), "four are left, and one runs");
    assert!(dropped.lock().unwrap().iter().all(|thread| *thread != thread::current().id()), "dropped on the pool");
    assert!(!dropped.lock().unwrap().is_empty());
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

/// A service that waited in `poll_ready` may be called much later, or never.
#[tokio::test(start_paused = true)]
async fn permits_that_services_waited_for_are_no_calls_that_wait() {
    let mut paced = Paced::of(ThreadPool::builder().threads(1).queue_capacity(256));
    paced.run();
    eventually(|| paced.pool.stats().started == 1).await;
    (0..256).for_each(|_| paced.run());
    let service = paced.layer().backpressure().layer(service_fn_blocking(|()| TestResult::Ok(())));
    let mut services: Vec<_> = (0..8).map(|_| service.clone()).collect();
    let waits = services
        .iter_mut()
        .map(|service| tokio_test::task::spawn(std::future::poll_fn(move |cx| Service::<()>::poll_ready(service, cx))));
    let mut waits: Vec<_> = waits.collect();
    assert!(waits.iter_mut().all(|wait| wait.poll().is_pending()), "the queue is full");
    paced.end_calls().await;
    assert_eq!(paced.pool.stats().permits_in_use, 8);

    paced.overload().await;
    paced.end_calls().await;
    (0..4).for_each(|_| paced.call());
    assert_eq!(paced.failed().await, []);
    drop(waits);
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
