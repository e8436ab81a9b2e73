//! Calls of an adaptive layer run on the caller's thread while they are short.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use tower::{Layer, Service, ServiceExt, service_fn};
use tower_offload::{Offload, OffloadLayer, ThreadPool, offload::RejectWithError};

/// Runs `work` in an adaptive layer and returns the thread that it ran on.
fn service<F>(
    pool: &ThreadPool,
    work: F,
) -> impl Service<(), Response = ThreadId, Error = tower::BoxError, Future: Send> + Clone + Send + 'static
where
    F: Fn() + Clone + Send + 'static,
{
    let inner = service_fn(move |()| {
        work();
        ready(Ok::<_, Infallible>(thread::current().id()))
    });
    OffloadLayer::new(pool.clone()).reject(RejectWithError).adaptive().layer(inner)
}

/// Calls the service until calls run on this thread.
async fn warm_up<S>(service: &mut S)
where
    S: Service<(), Response = ThreadId, Error: std::fmt::Debug>,
{
    for _ in 0..10_000 {
        if call(service).await == thread::current().id() {
            return;
        }
    }
    panic!("no call ran on this thread");
}

async fn call<S>(service: &mut S) -> ThreadId
where
    S: Service<(), Response = ThreadId, Error: std::fmt::Debug>,
{
    service.ready().await.unwrap().call(()).await.unwrap()
}

#[tokio::test]
async fn first_calls_run_on_the_pool() {
    let pool = ThreadPool::cpu();
    let mut service = service(&pool, || {});
    for _ in 0..64 {
        assert_ne!(call(&mut service).await, thread::current().id());
    }
    assert_eq!(pool.stats().in_place, 0);
}

#[tokio::test]
async fn short_calls_run_on_the_callers_thread() {
    let pool = ThreadPool::cpu();
    let mut service = service(&pool, || {});
    warm_up(&mut service).await;
    assert!(pool.stats().in_place > 0);
}

#[tokio::test]
async fn call_that_blocks_its_caller_ends_that_for_a_minute() {
    let pool = ThreadPool::cpu();
    let blocks = Arc::new(AtomicBool::new(false));
    let flag = blocks.clone();
    let mut service = service(&pool, move || {
        if flag.load(SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
    });
    // A run on a busy machine may take over 50 us, so that trust is lost between two calls.
    while pool.stats().misplaced == 0 {
        blocks.store(false, SeqCst);
        warm_up(&mut service).await;
        blocks.store(true, SeqCst);
        call(&mut service).await;
    }
    blocks.store(false, SeqCst);
    for _ in 0..1000 {
        assert_ne!(call(&mut service).await, thread::current().id());
    }
    assert_eq!(pool.stats().misplaced, 1);
}

/// Asserts that a call of `other` runs where it is made, after short calls of `service`. A run that
/// the machine delays counts as long, so this takes several tries.
async fn assert_judged_together<S>(mut service: S, mut other: S)
where
    S: Service<(), Response = ThreadId, Error: std::fmt::Debug>,
{
    for _ in 0..10_000 {
        warm_up(&mut service).await;
        if call(&mut other).await == thread::current().id() {
            return;
        }
    }
    panic!("no call of the other service ran on this thread");
}

#[tokio::test]
async fn calls_of_a_clone_are_judged_together_with_those_of_the_service() {
    let service = service(&ThreadPool::cpu(), || {});
    assert_judged_together(service.clone(), service).await;
}

/// On axum, a layer may be applied once per connection.
#[tokio::test]
async fn calls_of_services_of_one_layer_are_judged_together() {
    let layer = OffloadLayer::new(ThreadPool::cpu()).reject(RejectWithError).adaptive();
    let inner = service_fn(|()| ready(Ok::<_, Infallible>(thread::current().id())));
    assert_judged_together(layer.layer(inner), layer.clone().layer(inner)).await;
}

#[tokio::test]
async fn call_that_awaits_continues_on_the_pool() {
    let pool = ThreadPool::cpu();
    let awaits = Arc::new(AtomicBool::new(false));
    let flag = awaits.clone();
    let inner = service_fn(move |()| {
        let flag = flag.clone();
        async move {
            let before = thread::current().id();
            if flag.load(SeqCst) {
                tokio::task::yield_now().await;
            }
            Ok::<_, Infallible>((before, thread::current().id()))
        }
    });
    let mut service = OffloadLayer::new(pool).reject(RejectWithError).adaptive().layer(inner);
    let here = thread::current().id();
    for _ in 0..10_000 {
        awaits.store(false, SeqCst);
        while service.ready().await.unwrap().call(()).await.unwrap() != (here, here) {}
        awaits.store(true, SeqCst);
        let (before, after) = service.ready().await.unwrap().call(()).await.unwrap();
        if before == here {
            assert_ne!(after, here);
            return;
        }
    }
    panic!("no call that awaits began on this thread");
}

#[tokio::test]
async fn panic_on_the_callers_thread_is_answered_like_others() {
    let pool = ThreadPool::cpu();
    let panics = Arc::new(AtomicBool::new(false));
    let flag = panics.clone();
    let inner = service_fn(move |()| {
        assert!(!flag.load(SeqCst), "expected");
        ready(Ok::<_, Infallible>(thread::current().id()))
    });
    let mut service: Offload<_, _> =
        OffloadLayer::new(pool.clone()).reject(RejectWithError).catch_panics().adaptive().layer(inner);
    loop {
        panics.store(false, SeqCst);
        warm_up(&mut service).await;
        let in_place = pool.stats().in_place;
        panics.store(true, SeqCst);
        service.ready().await.unwrap().call(()).await.unwrap_err();
        if pool.stats().in_place > in_place {
            break;
        }
    }
    panics.store(false, SeqCst);
    // The panic may be due to the thread, so calls are offloaded for a minute.
    for _ in 0..1000 {
        assert_ne!(call(&mut service).await, thread::current().id());
    }
}
