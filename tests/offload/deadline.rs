//! Deadlines of calls: where they come from, and what happens when they pass.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use http::Request;
use tokio::{sync::oneshot, time};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, task};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    Background, CallError, OffloadLayer, ThreadPool,
    offload::{BlockingBody, RejectWithError, service_fn_blocking},
    pool::{self, CallOptions, CancelReason, Deadline, Inline, Pool, Run, cancel_reason, cancellation_token},
    remaining,
};

use crate::support::{OnDrop, TestResult, eventually, hold, one_thread, pools, soon};

/// No test waits for it, because `pass` advances the clock. Long enough for a machine that stalls.
const TIMEOUT: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

/// Advances the clock of the test by `duration`, and lets timers fire.
async fn pass(duration: Duration) {
    time::pause();
    time::advance(duration + Duration::from_millis(2)).await;
    time::resume();
}

/// Pools whose threads have the clock of the test. Workers on rayon's threads read the real one.
fn pools_with_clock(threads: usize, queue_capacity: usize) -> Vec<Arc<dyn Pool>> {
    let mut pools = pools(threads, queue_capacity);
    pools.retain(|pool| pool.admission().name() != "rayon");
    assert_eq!(pools.len(), 3);
    pools
}

fn run_within<T: Send + 'static>(
    pool: &(impl Pool + Clone),
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Run<T> {
    pool.run_with(CallOptions::new().timeout(timeout), work)
}

/// Work that blocks its thread between two steps.
struct Steps {
    entered: oneshot::Receiver<()>,
    go: mpsc::Sender<()>,
    seen: oneshot::Receiver<Seen>,
}

/// What work reads of its call: before it blocks, and after it.
#[derive(Debug)]
struct Seen {
    before: (Option<CancelReason>, Option<Duration>),
    after: (Option<CancelReason>, Option<Duration>),
    on_another_thread: Option<CancelReason>,
}

fn steps() -> (impl Fn() + Clone + Send + Sync + 'static, Steps) {
    let ((enter, entered), (go, gone), (see, seen)) = (oneshot::channel(), mpsc::channel(), oneshot::channel());
    let channels = Arc::new(Mutex::new(Some((enter, gone, see))));
    let work = move || {
        let (enter, gone, see) = channels.lock().unwrap().take().expect("the work runs once");
        let token = cancellation_token();
        let before = (cancel_reason(), remaining());
        enter.send(()).unwrap();
        let _ = gone.recv();
        let on_another_thread = std::thread::scope(|scope| scope.spawn(|| token.reason()).join().unwrap());
        let _ = see.send(Seen { before, after: (cancel_reason(), remaining()), on_another_thread });
    };
    (work, Steps { entered, go, seen })
}

#[tokio::test]
async fn expired_call_is_rejected_at_once_without_a_permit() {
    for pool in pools(1, 1) {
        let held = hold(&pool).await;
        let queued = pool.run(|| ());
        // The queue is full, so a call that asked for a permit would be `Overloaded`.
        let mut call = task::spawn(run_within(&pool, Duration::ZERO, || unreachable!("it has expired")));
        assert_eq!(assert_ready!(call.poll()), Err::<(), _>(CallError::DeadlineExceeded));
        assert_eq!(pool.admission().stats().rejected, 1);
        held.release().await.unwrap();
        soon(queued).await.unwrap();
    }
}

#[tokio::test]
async fn queued_call_is_answered_and_dropped_at_its_deadline() {
    for pool in pools(1, 8) {
        let (sender, dropped) = oneshot::channel();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let service = layer
            .timeout_request(|_: &OnDrop| Some(TIMEOUT))
            .layer(service_fn_blocking(|_: OnDrop| -> TestResult<()> { unreachable!("it has expired") }));
        let held = hold(&pool).await;
        let mut call = task::spawn(service.clone().oneshot(OnDrop(Some(sender))));
        assert_pending!(call.poll());
        pass(TIMEOUT / 2).await;
        assert!(!call.is_woken(), "half of the time is left");
        assert_pending!(call.poll());
        pass(TIMEOUT / 2).await;
        assert!(call.is_woken());
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.downcast_ref(), Some(&CallError::DeadlineExceeded));
        assert_eq!(dropped.await.unwrap(), std::thread::current().id(), "the request");
        let stats = pool.admission().stats();
        assert_eq!((stats.in_flight, stats.queued, stats.permits_in_use), (1, 0, 1), "the entry stays");
        held.release().await.unwrap();
        eventually(|| pool.admission().stats().permits_in_use == 0).await;
        let stats = pool.admission().stats();
        assert_eq!((stats.started, stats.rejected, stats.abandoned), (1, 1, 0));
    }
}

#[tokio::test]
async fn expired_call_that_nobody_polls_never_starts() {
    for pool in pools_with_clock(1, 8) {
        let held = hold(&pool).await;
        let call = run_within(&pool, TIMEOUT, || unreachable!("it has expired"));
        let in_time = run_within(&pool, MINUTE, || 7);
        pass(TIMEOUT).await;
        held.release().await.unwrap();
        assert_eq!(soon(in_time).await, Ok(7));
        assert_eq!(soon(call).await, Err::<(), _>(CallError::DeadlineExceeded));
        let stats = pool.admission().stats();
        assert_eq!((stats.started, stats.rejected, stats.in_flight), (2, 1, 0));
    }
}

#[tokio::test]
async fn running_work_sees_the_deadline_and_keeps_its_permit() {
    for pool in pools_with_clock(2, 8) {
        let (work, steps) = steps();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
        let service = layer.timeout_request(|(): &()| Some(TIMEOUT)).layer(service_fn_blocking(move |()| {
            work();
            TestResult::Ok(())
        }));
        let mut call = task::spawn(service.clone().oneshot(()));
        assert_pending!(call.poll());
        soon(steps.entered).await.unwrap();
        pass(TIMEOUT).await;
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.downcast_ref(), Some(&CallError::DeadlineExceeded));

        let rejected = assert_ready_err!(task::spawn(service.clone().oneshot(())).poll());
        assert_eq!(rejected.downcast_ref(), Some(&CallError::Overloaded), "the work still runs");
        steps.go.send(()).unwrap();
        let seen = soon(steps.seen).await.unwrap();
        assert_eq!(seen.before.0, None);
        assert!(seen.before.1.is_some_and(|left| left > TIMEOUT / 2 && left <= TIMEOUT), "{seen:?}");
        assert_eq!(seen.after, (Some(CancelReason::DeadlineExceeded), Some(Duration::ZERO)));
        assert_eq!(seen.on_another_thread, Some(CancelReason::DeadlineExceeded));
        eventually(|| pool.admission().stats().in_flight == 0).await;
        assert!(pool.admission().stats().cancelled_run_time > Duration::ZERO);
    }
}

#[tokio::test]
async fn work_sees_the_deadline_although_nobody_polls_the_call() {
    let pool = one_thread();
    let (work, steps) = steps();
    let call = run_within(&pool, TIMEOUT, work);
    soon(steps.entered).await.unwrap();
    pass(TIMEOUT).await;
    steps.go.send(()).unwrap();
    assert_eq!(soon(steps.seen).await.unwrap().after.0, Some(CancelReason::DeadlineExceeded));
    assert_eq!(soon(call).await, Err(CallError::DeadlineExceeded), "the result is late");
}

#[tokio::test]
async fn late_result_is_dropped_on_the_pool_before_its_caller_is_answered() {
    for pool in pools_with_clock(1, 8) {
        for detached in [false, true] {
            let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1);
            let layer = if detached { layer.detached() } else { layer };
            let ((work, steps), (sender, dropped)) = (steps(), oneshot::channel());
            let sender = Arc::new(Mutex::new(Some(sender)));
            let mut service = layer.timeout_request(|(): &()| Some(TIMEOUT)).layer(service_fn_blocking(move |()| {
                work();
                TestResult::Ok(OnDrop(sender.lock().unwrap().take()))
            }));
            let before = pool.admission().stats();
            let call = service.ready().await.unwrap().call(()); // Not polled before its end, so it has no timer.
            soon(steps.entered).await.unwrap();
            pass(TIMEOUT).await;
            steps.go.send(()).unwrap();
            assert_ne!(soon(dropped).await.unwrap(), std::thread::current().id());
            let error = soon(call).await.map(drop).unwrap_err();
            assert_eq!(error.downcast_ref(), Some(&CallError::DeadlineExceeded), "detached: {detached}");
            eventually(|| pool.admission().stats().in_flight == 0).await;
            let stats = pool.admission().stats();
            assert_eq!((stats.rejected, stats.completed), (before.rejected + 1, before.completed));
            assert_eq!(stats.cancelled_run_time == before.cancelled_run_time, detached);
        }
    }
}

#[tokio::test]
async fn result_in_time_is_returned_to_a_caller_that_polls_after_the_deadline() {
    let pool = one_thread();
    let call = run_within(&pool, TIMEOUT, || 7);
    eventually(|| pool.stats().completed == 1).await;
    pass(MINUTE).await;
    assert_eq!(soon(call).await, Ok(7));
    assert_eq!((pool.stats().rejected, pool.stats().cancelled_run_time), (0, Duration::ZERO));
}

#[tokio::test]
async fn detached_call_keeps_a_late_result_if_its_caller_has_left() {
    let pool = one_thread();
    let (work, steps) = steps();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).detached();
    let mut service = layer.timeout_request(|(): &()| Some(TIMEOUT)).layer(service_fn_blocking(move |()| {
        work();
        TestResult::Ok(())
    }));
    drop(service.ready().await.unwrap().call(()));
    soon(steps.entered).await.unwrap();
    pass(TIMEOUT).await;
    steps.go.send(()).unwrap();
    eventually(|| pool.stats().in_flight == 0).await;
    let stats = pool.stats();
    assert_eq!((stats.completed, stats.rejected, stats.cancelled_run_time), (1, 0, Duration::ZERO));
}

#[tokio::test]
async fn awaiting_work_is_dropped_on_the_pool_at_its_deadline() {
    for pool in pools(1, 8) {
        let (sender, dropped) = oneshot::channel();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
        let service = layer.timeout_request(|_: &OnDrop| Some(TIMEOUT)).layer(service_fn(async |guard: OnDrop| {
            std::future::pending::<()>().await;
            drop(guard);
            TestResult::Ok(())
        }));
        let mut call = task::spawn(service.oneshot(OnDrop(Some(sender))));
        assert_pending!(call.poll());
        eventually(|| pool.admission().stats().started == 1 && pool.admission().stats().active == 0).await;
        pass(TIMEOUT).await;
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.downcast_ref(), Some(&CallError::DeadlineExceeded));
        assert_ne!(soon(dropped).await.unwrap(), std::thread::current().id());
    }
}

#[tokio::test]
async fn caller_that_leaves_is_the_reason_before_the_deadline() {
    for pool in pools(1, 8) {
        for (passed, reason) in [(TIMEOUT / 2, CancelReason::CallerLeft), (TIMEOUT, CancelReason::DeadlineExceeded)] {
            let (work, steps) = steps();
            let mut call = task::spawn(run_within(&pool, TIMEOUT, work));
            assert_pending!(call.poll());
            soon(steps.entered).await.unwrap();
            pass(passed).await;
            drop(call);
            steps.go.send(()).unwrap();
            let seen = soon(steps.seen).await.unwrap();
            assert_eq!((seen.after.0, seen.on_another_thread), (Some(reason), Some(reason)));
            eventually(|| pool.admission().stats().in_flight == 0).await;
        }
    }
}

#[tokio::test]
async fn time_for_a_caller_that_is_gone_begins_when_it_leaves() {
    let pool = one_thread();
    let (work, steps) = steps();
    let mut call = task::spawn(pool.run(work));
    assert_pending!(call.poll());
    soon(steps.entered).await.unwrap();
    pass(MINUTE).await;
    drop(call);
    pass(TIMEOUT).await;
    steps.go.send(()).unwrap();
    eventually(|| pool.stats().in_flight == 0).await;
    let stats = pool.stats();
    assert!(stats.cancelled_run_time >= TIMEOUT && stats.cancelled_run_time < MINUTE, "{stats:?}");
    assert!(stats.run_time >= MINUTE, "{stats:?}");
}

#[tokio::test]
async fn call_that_waits_for_capacity_is_answered_at_its_deadline() {
    for (wait, timeout, expected) in
        [(MINUTE, TIMEOUT, CallError::DeadlineExceeded), (TIMEOUT, MINUTE, CallError::Overloaded)]
    {
        for pool in pools(1, 8) {
            let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).wait(wait);
            let (work, steps) = steps();
            let service = layer.timeout_request(move |(): &()| Some(timeout)).layer(service_fn_blocking(move |()| {
                work();
                TestResult::Ok(())
            }));
            let mut first = task::spawn(service.clone().oneshot(()));
            assert_pending!(first.poll());
            soon(steps.entered).await.unwrap();
            let mut second = task::spawn(service.oneshot(()));
            assert_pending!(second.poll());
            assert_eq!(pool.admission().stats().waiting, 1);
            pass(TIMEOUT).await;
            let error = assert_ready_err!(second.poll());
            assert_eq!(error.downcast_ref(), Some(&expected));
            assert_eq!(pool.admission().stats().waiting, 0);
            steps.go.send(()).unwrap();
            drop(first);
            eventually(|| pool.admission().stats().in_flight == 0).await;
        }
    }
}

#[tokio::test]
async fn earliest_of_all_deadlines_applies() {
    let pool = one_thread();
    let left = |deadline: Deadline, timeouts: [Duration; 2]| {
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
        let layer =
            layer.timeout_request(move |(): &()| Some(timeouts[0])).timeout_request(move |(): &()| Some(timeouts[1]));
        let service = layer.layer(service_fn_blocking(|()| TestResult::Ok(remaining().unwrap())));
        deadline.scope(async move { service.oneshot(()).await.unwrap() })
    };
    let (short, long) = (MINUTE, 10 * MINUTE);
    for (scope, timeouts) in [
        (Deadline::NONE, [short, long]),
        (Deadline::NONE, [long, short]),
        (Deadline::after(short), [long, long]),
        (Deadline::after(Duration::MAX), [short, Duration::MAX]),
    ] {
        let left = soon(left(scope, timeouts)).await;
        assert!(left <= short && left > short / 2, "{left:?} of {scope:?} and {timeouts:?}");
    }
}

#[tokio::test]
async fn calls_within_a_call_inherit_its_deadline() {
    let (outer, inner) = (one_thread(), one_thread());
    let calls = inner.clone();
    let (inherited, own) = soon(run_within(&outer, MINUTE, move || {
        let inherited = calls.run(remaining);
        let own = run_within(&calls, TIMEOUT, remaining);
        (inherited, own)
    }))
    .await
    .unwrap();
    assert!(soon(inherited).await.unwrap().is_some_and(|left| left <= MINUTE && left > TIMEOUT));
    assert!(soon(own).await.unwrap().is_some_and(|left| left <= TIMEOUT));
    assert_eq!(soon(inner.run(remaining)).await, Ok(None), "a call outside of it");
}

#[tokio::test]
async fn enclosing_scope_never_extends_an_outer_one() {
    let (soon, late) = (Deadline::after(TIMEOUT), Deadline::after(MINUTE));
    for (outer, inner) in [(soon, late), (late, soon)] {
        let seen = outer.scope(async { inner.scope(async { Deadline::current() }).await });
        assert_eq!(seen.await, soon);
        assert_eq!(outer.sync_scope(|| inner.sync_scope(Deadline::current)), soon);
    }
    assert_eq!(Deadline::current(), Deadline::NONE);
    let panicked = std::panic::catch_unwind(|| soon.sync_scope(|| panic!("expected")));
    assert!(panicked.is_err());
    assert_eq!(remaining(), None, "a panic leaves the scope");
}

#[tokio::test]
async fn past_scope_cancels_and_its_token_does_too() {
    let reason = Some(CancelReason::DeadlineExceeded);
    let past = Deadline::after(Duration::ZERO);
    assert_eq!(past.sync_scope(|| (cancel_reason(), cancellation_token().reason())), (reason, reason));
    let pool = one_thread();
    let within = pool.run(move || past.sync_scope(|| (cancel_reason(), remaining())));
    assert_eq!(soon(within).await, Ok((reason, Some(Duration::ZERO))));
    assert_eq!(cancel_reason(), None);
}

#[tokio::test]
async fn background_task_has_a_deadline_only_if_asked() {
    let background = Background::builder().pool(one_thread()).build();
    let pool = one_thread();
    let (send, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let submit = background.clone();
    soon(run_within(&pool, MINUTE, move || {
        let deadline = Deadline::current();
        let (first, second) = (send.clone(), send.clone());
        submit.spawn_blocking(move || first.send(remaining()).unwrap()).unwrap();
        submit.spawn_blocking(move || deadline.sync_scope(|| second.send(remaining()).unwrap())).unwrap();
        submit.spawn(deadline.scope(async move { send.send(remaining()).unwrap() })).unwrap();
    }))
    .await
    .unwrap();
    let mut asked = 0;
    for _ in 0..3 {
        asked += usize::from(soon(seen.recv()).await.unwrap().is_some_and(|left| left <= MINUTE));
    }
    assert_eq!(asked, 2);
    assert!(background.shutdown(MINUTE).await.is_clean());
}

#[tokio::test]
async fn blocking_body_outlives_the_deadline_of_its_request() {
    let pool = one_thread();
    let lines = pool.clone();
    let body = soon(run_within(&pool, TIMEOUT, move || {
        BlockingBody::new(lines, (0..2).map(|_| Ok::<_, std::io::Error>(format!("{:?}\n", remaining()))))
    }));
    let body = body.await.unwrap().unwrap();
    pass(TIMEOUT).await;
    let body = soon(http_body_util::BodyExt::collect(body)).await.unwrap().to_bytes();
    assert_eq!(body, "None\nNone\n");
}

// ---- with other options ----

#[tokio::test]
async fn detached_work_has_no_deadline_once_it_runs() {
    for pool in pools(1, 8) {
        let (work, steps) = steps();
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).detached();
        let service = layer.timeout_request(|(): &()| Some(TIMEOUT)).layer(service_fn_blocking(move |()| {
            work();
            TestResult::Ok(())
        }));
        let mut call = task::spawn(service.oneshot(()));
        assert_pending!(call.poll());
        soon(steps.entered).await.unwrap();
        pass(TIMEOUT).await;
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.downcast_ref(), Some(&CallError::DeadlineExceeded));
        steps.go.send(()).unwrap();
        let seen = soon(steps.seen).await.unwrap();
        assert_eq!((seen.before, seen.after, seen.on_another_thread), ((None, None), (None, None), None));
        eventually(|| pool.admission().stats().in_flight == 0).await;
        assert_eq!(pool.admission().stats().cancelled_run_time, Duration::ZERO, "the work is wanted");
    }
}

#[tokio::test]
async fn detached_call_that_has_expired_never_starts() {
    for pool in pools_with_clock(1, 8) {
        for keeps_waiting in [true, false] {
            let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).detached();
            let service = layer
                .timeout_request(|(): &()| Some(TIMEOUT))
                .layer(service_fn_blocking(|()| -> TestResult<()> { unreachable!("it has expired") }));
            let before = pool.admission().stats();
            let held = hold(&pool).await;
            let mut call = task::spawn(service.oneshot(()));
            assert_pending!(call.poll());
            if keeps_waiting {
                pass(TIMEOUT).await;
                assert_ready_err!(call.poll());
            } else {
                drop(call);
                pass(TIMEOUT).await;
            }
            held.release().await.unwrap();
            eventually(|| pool.admission().stats().in_flight == 0).await;
            let stats = pool.admission().stats();
            assert_eq!(stats.started, before.started + 1, "only the call that held the thread");
            assert_eq!(stats.rejected, before.rejected + 1, "counted once");
        }
    }
}

#[tokio::test]
async fn expired_request_releases_what_backpressure_reserved() {
    for pool in pools(1, 1) {
        let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).max_in_flight(1).backpressure();
        let layer = layer.timeout_request(|timeout: &Duration| Some(*timeout));
        let mut service = layer.layer(service_fn_blocking(|_| TestResult::Ok(remaining().unwrap())));
        let expired = service.ready().await.unwrap().call(Duration::ZERO);
        assert_eq!(soon(expired).await.unwrap_err().downcast_ref(), Some(&CallError::DeadlineExceeded));
        assert_eq!(pool.admission().stats().permits_in_use, 0);
        let call = soon(service.ready()).await.unwrap().call(MINUTE);
        assert!(soon(call).await.unwrap() <= MINUTE);
    }
}

#[tokio::test]
async fn reservation_has_no_deadline_of_the_scope_that_made_it() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).backpressure();
    let mut service = layer.layer(service_fn_blocking(|()| TestResult::Ok(remaining())));
    Deadline::after(TIMEOUT).scope(async { service.ready().await.map(drop) }).await.unwrap();
    assert_eq!(soon(service.call(())).await.unwrap(), None);
}

#[tokio::test]
async fn expired_calls_are_no_arrivals_of_an_overloaded_pool() {
    let pool = one_thread();
    let held = hold(&pool).await;
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).timeout_request(|(): &()| Some(Duration::ZERO));
    let service = layer.layer(service_fn_blocking(|()| TestResult::Ok(())));
    for _ in 0..10_000 {
        let error = service.clone().oneshot(()).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::DeadlineExceeded));
    }
    assert_eq!((pool.stats().overloads, pool.stats().queued), (0, 0));
    held.release().await.unwrap();
}

#[tokio::test]
async fn inline_request_has_no_deadline_of_the_layer() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError);
    let layer = layer.filter_request(|(): &()| false).timeout_request(|(): &()| Some(Duration::ZERO));
    let service = layer.layer(service_fn(async |()| TestResult::Ok((remaining(), pool::cancelled()))));
    assert_eq!(soon(service.clone().oneshot(())).await.unwrap(), (None, false));
    let enclosed = Deadline::after(MINUTE).scope(service.oneshot(()));
    assert!(soon(enclosed).await.unwrap().0.is_some(), "that of an enclosing scope is visible");
}

#[tokio::test]
async fn pool_without_threads_never_starts_an_expired_call() {
    let pool = Inline::new();
    assert_eq!(run_within(&pool, Duration::ZERO, || ()).await, Err(CallError::DeadlineExceeded));
    assert!(run_within(&pool, MINUTE, remaining).await.unwrap().is_some_and(|left| left <= MINUTE));
}

#[tokio::test]
async fn shutdown_is_the_reason_before_the_deadline() {
    for pool in pools(1, 8) {
        let (work, steps) = steps();
        let mut running = task::spawn(run_within(&pool, MINUTE, work));
        assert_pending!(running.poll());
        soon(steps.entered).await.unwrap();
        let queued = run_within(&pool, MINUTE, || ());
        assert_eq!(pool.shutdown(Duration::ZERO).await.running, 1);
        assert_eq!(soon(queued).await, Err(CallError::Closed));
        steps.go.send(()).unwrap();
        let seen = soon(steps.seen).await.unwrap();
        assert_eq!(
            (seen.after.0, seen.on_another_thread),
            (Some(CancelReason::Shutdown), Some(CancelReason::Shutdown))
        );
        assert_eq!(soon(running).await, Ok(()));
        assert_eq!(soon(run_within(&pool, MINUTE, || ())).await, Err(CallError::Closed));
    }
}

#[tokio::test]
async fn panic_after_the_deadline_is_counted_and_not_resumed() {
    let pool = one_thread();
    let (work, steps) = steps();
    let mut call = task::spawn(run_within(&pool, TIMEOUT, move || {
        work();
        panic!("expected panic");
    }));
    assert_pending!(call.poll());
    soon(steps.entered).await.unwrap();
    pass(TIMEOUT).await;
    assert_eq!(assert_ready!(call.poll()), Err::<(), _>(CallError::DeadlineExceeded));
    steps.go.send(()).unwrap();
    eventually(|| pool.stats().in_flight == 0).await;
    assert_eq!(pool.stats().panicked, 1);
    assert_eq!(soon(pool.run(|| 1)).await, Ok(1));
}

#[test]
fn caller_without_a_timer_is_answered_when_its_turn_comes() {
    let pool = one_thread();
    let (release, released) = mpsc::channel::<()>();
    let held = pool.run(move || released.recv());
    let started = Arc::new(AtomicUsize::new(0));
    let counted = started.clone();
    let deadline = Deadline::after(TIMEOUT / 20);
    let mut call =
        task::spawn(pool.run_with(CallOptions::new().deadline(deadline), move || counted.fetch_add(1, SeqCst)));
    assert_pending!(call.poll());
    while !deadline.has_passed() {
        std::thread::yield_now(); // There is no runtime whose clock could be advanced.
    }
    assert_pending!(call.poll());
    drop(release);
    assert!(pollster::block_on(held).unwrap().is_err());
    assert_eq!(pollster::block_on(call), Err(CallError::DeadlineExceeded));
    assert_eq!(started.load(SeqCst), 0);
}

#[test]
fn runtime_without_time_does_not_panic_the_caller() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let result = runtime.block_on(async {
        let pool = one_thread();
        let held = hold_without_timer(&pool).await;
        let mut call = task::spawn(run_within(&pool, MINUTE, || 1));
        assert_pending!(call.poll());
        drop(held);
        call.await
    });
    assert_eq!(result, Ok(1));
}

/// Blocks the thread of `pool` until the sender is dropped.
async fn hold_without_timer(pool: &ThreadPool) -> mpsc::Sender<()> {
    let ((entered, inside), (release, released)) = (oneshot::channel(), mpsc::channel::<()>());
    tokio::spawn(pool.run(move || {
        entered.send(()).unwrap();
        let _ = released.recv();
    }));
    inside.await.unwrap();
    release
}

#[tokio::test]
async fn races_of_deadline_start_and_end_count_each_call_once() {
    for pool in pools(2, 1024) {
        let ran = Arc::new(AtomicUsize::new(0));
        let calls: Vec<_> = (0..500)
            .map(|index| {
                let ran = ran.clone();
                tokio::spawn(run_within(&pool, Duration::from_micros(index * 10), move || {
                    ran.fetch_add(1, SeqCst);
                    std::thread::yield_now();
                }))
            })
            .collect();
        let (mut ended, mut expired) = (0, 0);
        for call in calls {
            match soon(call).await.unwrap() {
                Ok(()) => ended += 1,
                Err(CallError::DeadlineExceeded) => expired += 1,
                Err(other) => panic!("{other}"),
            }
        }
        eventually(|| pool.admission().stats().in_flight == 0).await;
        let stats = pool.admission().stats();
        assert_eq!(stats.rejected, expired, "{stats:?}");
        assert_eq!(stats.started as usize, ran.load(SeqCst), "{stats:?}");
        assert!(ended <= stats.started, "{stats:?}");
    }
}

// ---- HTTP ----

/// Returns what the work reads as its remaining time, or the error.
async fn remaining_with(
    layer: OffloadLayer<
        RejectWithError,
        impl tower_offload::offload::Inspect<Request<()>, Captured: Send + 'static> + 'static,
    >,
    timeouts: &[&[u8]],
) -> Result<Option<Duration>, CallError> {
    let service = layer.layer(service_fn_blocking(|_: Request<()>| TestResult::Ok(remaining())));
    let mut request = Request::new(());
    for timeout in timeouts {
        request.headers_mut().append("grpc-timeout", http::HeaderValue::from_bytes(timeout).unwrap());
    }
    soon(service.oneshot(request)).await.map_err(|error| *error.downcast_ref().unwrap())
}

#[tokio::test]
async fn grpc_timeout_is_a_deadline_only_if_the_layer_asks_for_it() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError);
    assert_eq!(remaining_with(layer.clone(), &[b"0n"]).await, Ok(None));
    assert_eq!(remaining_with(layer.clone().grpc_timeout(), &[b"0n"]).await, Err(CallError::DeadlineExceeded));
    let left = remaining_with(layer.grpc_timeout(), &[b"1M"]).await.unwrap().unwrap();
    assert!(left <= MINUTE && left > MINUTE / 2, "{left:?}");
}

#[tokio::test]
async fn malformed_grpc_timeout_is_no_deadline() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).grpc_timeout();
    for value in [&b""[..], b"n", b"123456789n", b"\xff\xfen", b"1 n", b"-1n", b"1x"] {
        assert_eq!(remaining_with(layer.clone(), &[value]).await, Ok(None), "{value:?}");
    }
    assert_eq!(remaining_with(layer.clone(), &[b"1x", b"0S"]).await, Err(CallError::DeadlineExceeded));
    assert!(remaining_with(layer, &[b"2M", b"1M"]).await.unwrap().unwrap() <= MINUTE);
}

#[tokio::test]
async fn longest_grpc_timeout_does_not_extend_that_of_the_server() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError);
    for value in [&b"99999999H"[..], b"2M"] {
        let before = layer.clone().timeout(|_| Some(MINUTE)).grpc_timeout();
        assert!(remaining_with(before, &[value]).await.unwrap().unwrap() <= MINUTE);
        let after = layer.clone().grpc_timeout().timeout(|_| Some(MINUTE));
        assert!(remaining_with(after, &[value]).await.unwrap().unwrap() <= MINUTE);
    }
    let alone = remaining_with(layer.grpc_timeout(), &[b"99999999H"]).await.unwrap();
    assert!(alone.is_none_or(|left| left > 1_000_000 * MINUTE), "{alone:?}");
}

#[tokio::test]
async fn extension_of_a_request_is_a_deadline() {
    let layer = OffloadLayer::new(one_thread()).timeout(|head| head.extensions().get::<Deadline>()?.remaining());
    let service = layer.layer(service_fn(async |_: Request<()>| {
        TestResult::Ok(http::Response::new(format!("{}", remaining().is_some_and(|left| left <= MINUTE))))
    }));
    for (deadline, expected) in [
        (Some(Deadline::after(MINUTE)), (200, "true")),
        (Some(Deadline::NONE), (200, "false")),
        (None, (200, "false")),
        (Some(Deadline::after(Duration::ZERO)), (504, "")),
    ] {
        let mut request = Request::new(());
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        let response = soon(service.clone().oneshot(request)).await.unwrap();
        assert_eq!((response.status().as_u16(), &**response.body()), expected);
    }
}
