//! Who goes first, who goes all the same, and what must never wait.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio_test::{assert_pending, assert_ready_err, task};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{Typed, sync_fn},
    pool::{Pool, Priority},
};

use crate::support::{Answer, eventually, hold, pools, soon};

/// Connections that calls take and give back, blocking as r2d2's do.
#[derive(Default)]
struct Connections {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Connections {
    fn acquire(&self) {
        let free = self.free.lock().unwrap();
        let patience = Duration::from_secs(60);
        let (mut free, waited) = self.freed.wait_timeout_while(free, patience, |free| *free == 0).unwrap();
        assert!(!waited.timed_out(), "a deadlock");
        *free -= 1;
    }

    fn release(&self) {
        *self.free.lock().unwrap() += 1;
        self.freed.notify_one();
    }
}

/// E7: every thread blocks in `acquire`, and the queue is full of more of it.
#[tokio::test]
async fn e7_release_never_queues_behind_acquire() {
    let builder = ThreadPool::builder().threads(2).queue_capacity(5).keep_alive(Duration::from_millis(1));
    let pool = builder.build().unwrap();
    let connections = Arc::new(Connections::default());
    let acquire = || {
        let connections = connections.clone();
        pool.run(move || connections.acquire())
    };
    let mut acquires = vec![acquire(), acquire()];
    eventually(|| pool.stats().active == 2).await;
    acquires.extend((0..4).map(|_| acquire()));
    // Without a lane of its own it stands behind them, and would for ever:
    let normal = Arc::new(AtomicBool::new(false));
    let behind = pool.run({
        let normal = normal.clone();
        move || normal.store(true, SeqCst)
    });
    assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Overloaded), "the queue is full");
    assert_eq!(pool.threads(), 2);
    for released in 0..acquires.len() {
        let (connections, normal) = (connections.clone(), normal.clone());
        let ran_before = pool.run_with_priority(Priority::Release, move || {
            let ran = normal.load(SeqCst);
            connections.release();
            ran
        });
        let ran_before = soon(ran_before).await.unwrap();
        assert!(!ran_before || released > 4, "both threads were blocked still");
    }
    for acquired in soon(join_all(acquires)).await {
        acquired.unwrap();
    }
    soon(behind).await.unwrap();
    assert!(normal.load(SeqCst));
    assert_eq!((pool.stats().permits_in_use, pool.stats().queued), (0, 0));
    eventually(|| pool.threads() == 2).await; // the reserved one ends after its keep-alive
}

/// A release call that awaits: its wakes come to the reserved thread as well.
#[tokio::test]
async fn e7_a_release_call_that_awaits_is_resumed_though_all_threads_are_held() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).priority_request(|_: &u32| Priority::Release);
    let service = layer.layer(tower::service_fn(async |n: u32| {
        for _ in 0..10 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await; // the work's own, to be woken by a timer
        }
        Answer::Ok(n)
    }));
    let held = hold(&pool).await;
    let calls = join_all((0..20).map(|n| service.clone().oneshot(n)));
    let answers: Vec<_> = soon(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, Vec::from_iter(0..20));
    assert_eq!(pool.threads(), 2);
    held.release().await.unwrap();
}

/// The reserved thread is for nothing else.
#[tokio::test]
async fn a_reserved_thread_leaves_other_calls_where_they_are() {
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let held = hold(&pool).await;
    let high = pool.run_with_priority(Priority::High, || ());
    for _ in 0..100 {
        soon(pool.run_with_priority(Priority::Release, || ())).await.unwrap();
    }
    assert_eq!(pool.stats().queued, 1);
    held.release().await.unwrap();
    soon(high).await.unwrap();
}

#[tokio::test]
async fn release_has_64_places_of_its_own_and_goes_first_on_every_pool() {
    let ours = ThreadPool::builder().threads(1).queue_capacity(4).reserved_threads(0).build().unwrap();
    let lent = pools(1, 4).into_iter().filter(|pool| !["offload", "growing"].contains(&pool.admission().name()));
    for pool in lent.chain([Arc::new(ours) as Arc<dyn Pool>]) {
        let held = hold(&pool).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |priority: Priority| {
            let order = order.clone();
            pool.run_with_priority(priority, move || order.lock().unwrap().push(priority))
        };
        let mut calls: Vec<_> = (0..4).map(|_| note(Priority::Normal)).collect();
        assert_eq!(soon(note(Priority::Normal)).await, Err(CallError::Overloaded));
        calls.extend((0..8).map(|_| note(Priority::Release)));
        held.release().await.unwrap();
        for call in calls {
            soon(call).await.unwrap();
        }
        let order = order.lock().unwrap();
        assert_eq!(order.len(), 12);
        assert!(order[..8].iter().all(|it| *it == Priority::Release), "{order:?}");
    }
}

#[tokio::test]
async fn release_is_bounded_too() {
    for pool in pools(1, 4) {
        let latch = Arc::new(Connections::default());
        let (held, reserved) = (hold(&pool).await, latch.clone());
        let before = pool.admission().stats().started;
        let mut calls = vec![pool.run_with_priority(Priority::Release, move || reserved.acquire())];
        eventually(|| pool.admission().stats().started > before || pool.admission().stats().permits_in_use == 1).await;
        let mut refused = 0;
        for _ in 0..70 {
            let mut call = task::spawn(pool.run_with_priority(Priority::Release, || ()));
            match call.poll() {
                std::task::Poll::Pending => calls.push(call.into_inner()),
                std::task::Poll::Ready(answer) => {
                    assert_eq!(answer, Err(CallError::Overloaded));
                    refused += 1;
                }
            }
        }
        assert!((5..=7).contains(&refused), "{refused}");
        latch.release();
        held.release().await.unwrap();
        for call in soon(join_all(calls)).await {
            call.unwrap();
        }
    }
}

#[tokio::test]
async fn release_calls_have_places_of_their_own_in_a_layer() {
    for mode in [None, Some(Duration::from_secs(60))] {
        let pool = ThreadPool::builder().threads(1).build().unwrap();
        let layer = OffloadLayer::new(pool.clone()).reject(Typed).max_in_flight(1);
        let layer = mode.into_iter().fold(layer, |layer, at_most| layer.wait(at_most));
        let service = layer.priority_request(|priority: &Priority| *priority).layer(sync_fn(Answer::Ok));
        let held = hold(&pool).await;
        let mut acquire = task::spawn(service.clone().oneshot(Priority::Normal));
        assert_pending!(acquire.poll());
        let mut second = task::spawn(service.clone().oneshot(Priority::Normal));
        match mode {
            None => drop(assert_ready_err!(second.poll())),
            Some(_) => assert_pending!(second.poll()),
        }
        assert_eq!(soon(service.clone().oneshot(Priority::Release)).await.unwrap(), Priority::Release);
        held.release().await.unwrap();
        soon(acquire).await.unwrap();
    }
}

#[tokio::test]
async fn low_is_refused_once_half_of_the_queue_is_taken() {
    for pool in pools(1, 5) {
        let held = hold(&pool).await;
        let low = || pool.run_with_priority(Priority::Low, || ());
        let mut calls: Vec<_> = vec![low(), pool.run(|| ()), low()];
        assert_eq!(soon(low()).await, Err(CallError::Overloaded));
        calls.extend([Priority::Normal, Priority::High].map(|priority| pool.run_with_priority(priority, || ())));
        assert_eq!(soon(pool.run(|| ())).await, Err(CallError::Overloaded));
        held.release().await.unwrap();
        for call in calls {
            soon(call).await.unwrap();
        }
        soon(low()).await.unwrap();
    }
}

/// Through a layer that waits, low calls wait as others do.
#[tokio::test]
async fn low_waits_for_room_where_the_layer_waits() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(Typed).wait(Duration::from_secs(60));
    let service = layer.priority_request(|_: &u32| Priority::Low).layer(sync_fn(Answer::Ok));
    let held = hold(&pool).await;
    let mut calls: Vec<_> = (0..3).map(|n| task::spawn(service.clone().oneshot(n))).collect();
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    held.release().await.unwrap();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(soon(call).await.unwrap(), n);
    }
}

/// Every high call puts the next one into the queue before it ends, four at a time: the queue never runs empty of them.
#[tokio::test]
async fn a_steady_stream_of_high_does_not_keep_low_from_running() {
    struct Stream<P> {
        pool: P,
        stop: AtomicBool,
        ran: AtomicUsize,
    }
    fn next<P: Pool + Clone>(stream: Arc<Stream<P>>) {
        let pool = stream.pool.clone();
        tokio::spawn(run_with_priority(pool, Priority::High, move || {
            stream.ran.fetch_add(1, SeqCst);
            if !stream.stop.load(SeqCst) {
                next(stream);
            }
        }));
    }
    for pool in pools(1, 64) {
        let stop = AtomicBool::new(false);
        let stream = Arc::new(Stream { pool: pool.clone(), stop, ran: AtomicUsize::new(0) });
        let held = hold(&pool).await;
        (0..4).for_each(|_| next(stream.clone()));
        let low = [Priority::Low, Priority::Normal, Priority::Low].map(|it| pool.run_with_priority(it, || ()));
        held.release().await.unwrap();
        for call in low {
            soon(call).await.unwrap();
        }
        stream.stop.store(true, SeqCst);
        assert!(stream.ran.load(SeqCst) > 4, "and high went on meanwhile");
        eventually(|| pool.admission().stats().in_flight == 0).await;
    }
}

#[tokio::test]
async fn the_priority_that_was_set_last_counts_and_filters_and_carried_values_leave_it_alone() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(2).build().unwrap();
    let layer = OffloadLayer::new(pool.clone())
        .reject(Typed)
        .priority_request(|_: &u32| Priority::Low)
        .priority_request(|_: &u32| Priority::Release)
        .filter_request(|_: &u32| true)
        .carry_request(|n: &u32| *n, |_, poll| poll());
    let service = layer.layer(sync_fn(Answer::Ok));
    let held = hold(&pool).await;
    let full = [pool.run(|| ()), pool.run(|| ())];
    assert_eq!(soon(service.clone().oneshot(1)).await.unwrap(), 1, "on the reserved thread");
    held.release().await.unwrap();
    for call in full {
        soon(call).await.unwrap();
    }
}
