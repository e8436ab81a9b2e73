use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex,
        mpsc::{self, Receiver},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{
    CallError, OffloadLayer, ThreadPool,
    offload::{RejectWithError, service_fn_blocking},
    pool::{Pool, Rayon},
};

use crate::support::{TestResult, eventually, one_thread, pools, soon};

#[derive(Debug, PartialEq)]
struct Payload(u32);

#[tokio::test]
async fn panic_reaches_the_caller_and_costs_no_thread() {
    for pool in pools(2, 64) {
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn_blocking(
            |n: u32| -> TestResult<u32> { if n < 100 { std::panic::panic_any(Payload(n)) } else { Ok(n) } },
        ));
        for n in 0..20 {
            let panic = soon(AssertUnwindSafe(service.clone().oneshot(n)).catch_unwind()).await.unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&Payload(n)));
        }
        // Both threads are alive: two calls wait for each other.
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let both = [(); 2].map(|()| {
            let barrier = barrier.clone();
            pool.run(move || barrier.wait().is_leader())
        });
        let [one, other] = both;
        assert_ne!(soon(one).await.unwrap(), soon(other).await.unwrap());
        assert_eq!(pool.admission().stats().panicked, 20);
        assert_eq!(soon(service.oneshot(100)).await.unwrap(), 100);
    }
}

/// The caller leaves after the panic, then before it.
#[tokio::test]
async fn panic_of_a_payload_drop_is_not_counted() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::panic_any("the payload");
        }
    }
    for pool in pools(1, 8) {
        let panics = || std::panic::panic_any(Bomb);
        let after = pool.run(panics);
        eventually(|| pool.admission().stats().in_flight == 0 && pool.admission().stats().panicked == 1).await;
        soon(pool.run(|| ())).await.unwrap(); // the thread has finished the call
        drop(after);
        assert_eq!(pool.admission().stats().panicked, 1);

        let (entered, inside) = oneshot::channel();
        let (go, gone) = mpsc::channel::<()>();
        let before = pool.run(move || {
            entered.send(()).unwrap();
            let _ = gone.recv();
            panics();
        });
        soon(inside).await.unwrap();
        drop((before, go));
        soon(pool.run(|| ())).await.unwrap();
        assert_eq!(pool.admission().stats().panicked, 2);
    }
}

/// A waker that panics.
struct Explosive;

impl Explosive {
    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&Waker::from(Arc::new(Self))))
    }
}

impl Wake for Explosive {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

/// The wakers of calls that wait for a permit of the queue, for one of the layer, and of shutdowns.
#[tokio::test]
async fn panicking_waker_does_not_affect_who_closes_the_pool() {
    let pool = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let held = crate::support::hold(&pool).await;
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError).wait(std::time::Duration::from_secs(60));
    let service = |layer: OffloadLayer<RejectWithError>| layer.layer(service_fn_blocking(|()| TestResult::Ok(())));
    let queued = pool.run(|| ());
    let mut waiting = [(); 2].map(|()| Box::pin(service(layer.clone()).oneshot(())));
    let limited = service(layer.max_in_flight(1));
    waiting.iter_mut().for_each(|call| assert!(Explosive::poll(call.as_mut()).is_pending()));
    let mut limited = [(); 2].map(|()| Box::pin(limited.clone().oneshot(())));
    limited.iter_mut().for_each(|call| assert!(Explosive::poll(call.as_mut()).is_pending()));
    pool.admission().close();
    for call in waiting.into_iter().chain(limited) {
        assert_eq!(soon(call).await.unwrap_err().downcast_ref(), Some(&CallError::Closed));
    }

    let shutdown_pool = pool.clone();
    let mut shutdowns = [(); 2].map(|()| Box::pin(shutdown_pool.shutdown(std::time::Duration::MAX)));
    shutdowns.iter_mut().for_each(|shutdown| assert!(Explosive::poll(shutdown.as_mut()).is_pending()));
    pool.admission().halt();
    held.release().await.unwrap();
    assert_eq!(soon(queued).await, Err(CallError::Closed));
    drop(pool);
    for shutdown in shutdowns {
        assert!(soon(shutdown).await.is_empty());
    }
}

/// The pool wakes the callers of queued calls in a batch. These callers are tasks with wakers of
/// their own, as a combinator may use.
#[tokio::test]
async fn panicking_waker_costs_no_thread() {
    for pool in pools(1, 8) {
        let task = tokio::spawn(async move {
            let thread = || std::thread::current().id();
            let before = soon(pool.run(thread)).await.unwrap();
            let held = crate::support::hold(&pool).await;
            let mut calls = [(); 4].map(|()| Box::pin(pool.run(|| ())));
            calls.iter_mut().for_each(|call| assert!(Explosive::poll(call.as_mut()).is_pending()));
            held.release().await.unwrap();
            eventually(|| pool.admission().stats().in_flight == 0).await;
            for call in calls {
                assert_eq!(soon(call).await, Ok(()));
            }
            assert_eq!(pool.admission().stats().panicked, 0);
            (before, soon(pool.run(thread)).await.unwrap(), format!("{pool:?}"))
        });
        let (before, after, pool) = soon(task).await.unwrap();
        assert!(before == after || !pool.starts_with("ThreadPool"), "{pool}");
    }
}

#[tokio::test]
async fn panic_after_an_await_is_resumed() {
    let service =
        OffloadLayer::new(one_thread()).reject(RejectWithError).layer(service_fn(async |()| -> TestResult<()> {
            tokio::task::yield_now().await;
            panic!("late")
        }));
    let panic = soon(AssertUnwindSafe(service.oneshot(())).catch_unwind()).await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"late"));
}

#[tokio::test]
async fn catch_panics_answers_a_panic() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).catch_panics();
    let service = layer.layer(service_fn_blocking(|()| -> TestResult<()> { panic!("caught") }));
    let error = soon(service.oneshot(())).await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&CallError::Panicked));
}

/// `rayon::spawn` aborts the process if its closure panics and no handler is set.
#[tokio::test]
async fn rayon_pool_without_a_panic_handler_survives() {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let pool = Rayon::new(threads);
    for _ in 0..10 {
        let panicked = soon(AssertUnwindSafe(pool.run(|| panic!("in rayon"))).catch_unwind()).await;
        assert!(panicked.is_err());
    }
    // The same inside a parallel iterator.
    use rayon::prelude::*;
    let parallel = pool.run(|| (0..1000).into_par_iter().for_each(|n| assert!(n != 500, "found")));
    assert!(soon(AssertUnwindSafe(parallel).catch_unwind()).await.is_err());
    assert_eq!(soon(pool.run(|| 1)).await, Ok(1));
}

/// Installs a subscriber for this thread that records the fields of events in order.
fn events() -> (tracing::subscriber::DefaultGuard, Arc<Mutex<Vec<String>>>) {
    use tracing_subscriber::layer::SubscriberExt;
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);
    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            struct Fields(String);
            impl tracing::field::Visit for Fields {
                fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                    use std::fmt::Write;
                    write!(self.0, "{}={value:?} ", field.name()).unwrap();
                }
            }
            let mut fields = Fields(String::new());
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields.0);
        }
    }
    let lines = Lines::default();
    // With only one dispatcher, tracing caches the interest of the thread that reaches an event
    // first, and disables the event for all threads if it has no subscriber.
    static SECOND: LazyLock<tracing::Dispatch> =
        LazyLock::new(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new()));
    LazyLock::force(&SECOND);
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    (guard, lines.0)
}

#[tokio::test]
async fn panic_after_the_caller_left_is_counted_and_logged() {
    let (_guard, lines) = events();
    let pool = one_thread();
    let (entered, inside) = oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let channels = Arc::new(Mutex::new(Some((entered, released))));
    let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn_blocking(
        move |()| -> TestResult<()> {
            let (entered, released): (oneshot::Sender<()>, Receiver<()>) = channels.lock().unwrap().take().unwrap();
            entered.send(()).unwrap();
            released.recv().unwrap();
            panic!("unheard {}", "panic")
        },
    ));
    let mut call = task::spawn(service.oneshot(()));
    assert_pending!(call.poll());
    soon(inside).await.unwrap();
    drop(call);
    release.send(()).unwrap();
    eventually(|| pool.stats().in_flight == 0).await;
    assert_eq!(pool.stats().panicked, 1);
    let lines = lines.lock().unwrap();
    let matching: Vec<_> = lines.iter().filter(|line| line.contains("call panicked")).collect();
    assert_eq!(matching.len(), 1, "{lines:?}");
    assert!(
        matching[0].contains(r#"message="unheard panic""#) || matching[0].contains("unheard panic"),
        "{matching:?}"
    );
    assert!(matching[0].contains("caller_present=false"), "{matching:?}");
}

/// A successful call emits no event.
#[tokio::test]
async fn rejected_abandoned_and_panicked_calls_emit_one_event() {
    let (_guard, lines) = events();
    let pool = ThreadPool::builder().name("named").threads(1).queue_capacity(1).build().unwrap();
    let layer = OffloadLayer::new(pool.clone()).reject(RejectWithError);
    let service =
        layer.layer(service_fn_blocking(|fail: bool| if fail { panic!("named") } else { TestResult::Ok(()) }));
    soon(service.clone().oneshot(false)).await.unwrap();
    assert!(lines.lock().unwrap().is_empty(), "{lines:?}");

    let _ = soon(AssertUnwindSafe(service.clone().oneshot(true)).catch_unwind()).await.unwrap_err();
    let held = crate::support::hold(&pool).await;
    let mut queued = task::spawn(service.clone().oneshot(false));
    assert_pending!(queued.poll());
    let _ = task::spawn(service.clone().oneshot(false)).poll();
    drop(queued);
    held.release().await.unwrap();
    eventually(|| pool.stats().in_flight == 0).await;
    let lines = lines.lock().unwrap();
    for (message, detail) in [
        ("call panicked", "caller_present=true"),
        ("call rejected", r#"reason="overloaded""#),
        ("pool overloaded: calls are rejected", r#"reason="overloaded" rejected=1"#),
        ("call abandoned by its caller", "detached=false"),
    ] {
        let matching: Vec<_> = lines.iter().filter(|line| line.contains(message)).collect();
        assert_eq!(matching.len(), 1, "{message}: {lines:?}");
        assert!(matching[0].contains(detail) && matching[0].contains(r#"pool="named""#), "{matching:?}");
    }
}

/// Lets every event of this thread panic.
fn panicking_subscriber() -> tracing::subscriber::DefaultGuard {
    use tracing_subscriber::layer::SubscriberExt;
    struct Explosive;
    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Explosive {
        fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            panic!("a subscriber that panics");
        }
    }
    tracing::subscriber::set_default(tracing_subscriber::registry().with(Explosive))
}

/// The subscriber is user code that runs between the crate's own steps. Its panic reaches the
/// caller of that call.
#[tokio::test]
async fn panicking_subscriber_ends_only_its_call() {
    use tower_offload::pool::{Admission, Runnable};
    /// Drops every runnable on the caller's thread, which emits a `call rejected` event to that
    /// thread's subscriber.
    #[derive(Debug)]
    struct Forgetful(Admission);
    impl Pool for Forgetful {
        fn admission(&self) -> &Admission {
            &self.0
        }

        fn schedule(&self, runnable: Runnable) {
            drop(runnable);
        }
    }
    let _guard = panicking_subscriber();
    let pool = Arc::new(Forgetful(Admission::new("forgetful", 1)));
    for _ in 0..3 {
        let panic = soon(AssertUnwindSafe(pool.run(|| ())).catch_unwind()).await.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"a subscriber that panics"));
        let stats = pool.admission().stats();
        assert_eq!((stats.in_flight, stats.queued, stats.permits_in_use), (0, 0, 0), "{stats:?}");
    }
}

#[tokio::test]
async fn expired_call_leaves_the_queue_if_its_event_panics() {
    use tower_offload::pool::{Admission, CallOptions, Runnable};
    /// Keeps its runnables until the test runs them on its own thread.
    #[derive(Debug)]
    struct Later(Admission, Mutex<Vec<Runnable>>);
    impl Pool for Later {
        fn admission(&self) -> &Admission {
            &self.0
        }

        fn schedule(&self, runnable: Runnable) {
            self.1.lock().unwrap().push(runnable);
        }
    }
    let pool = Arc::new(Later(Admission::new("later", 1), Mutex::default()));
    let call = pool.run_with(CallOptions::new().timeout(Duration::from_millis(1)), || ());
    tokio::time::sleep(Duration::from_millis(5)).await; // until the deadline has passed
    let runnable = pool.1.lock().unwrap().pop().unwrap();
    {
        let _guard = panicking_subscriber();
        runnable.run();
    }
    let panic = soon(AssertUnwindSafe(call).catch_unwind()).await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"a subscriber that panics"));
    let stats = pool.admission().stats();
    assert_eq!((stats.in_flight, stats.queued, stats.permits_in_use), (0, 0, 0), "{stats:?}");
}
