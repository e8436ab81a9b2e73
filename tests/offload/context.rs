use std::sync::{Arc, Mutex};

use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{OffloadLayer, offload::RejectWithError, pool::Pool};
use tracing::{Instrument, Span, info_span};

use crate::support::{TestResult, eventually, one_thread, pools, soon};

tokio::task_local! {
    static TENANT: String;
}

#[tokio::test]
async fn work_runs_and_is_dropped_in_the_callers_span() {
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    for pool in pools(1, 8) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        struct OnDrop(Arc<Mutex<Vec<Option<tracing::Id>>>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.lock().unwrap().push(Span::current().id());
            }
        }
        let service = OffloadLayer::new(pool.clone()).reject(RejectWithError).layer(service_fn({
            let seen = seen.clone();
            move |()| {
                let seen = seen.clone();
                seen.lock().unwrap().push(Span::current().id()); // in `call`
                async move {
                    let _guard = OnDrop(seen.clone());
                    seen.lock().unwrap().push(Span::current().id());
                    tokio::task::yield_now().await;
                    seen.lock().unwrap().push(Span::current().id());
                    TestResult::Ok(())
                }
            }
        }));
        let span = info_span!("request");
        let id = span.id();
        assert!(id.is_some());
        soon(service.clone().oneshot(()).instrument(span)).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), vec![id; 4]);
        assert!(Span::current().id().is_none());
        // The thread of the pool does not keep the span.
        assert_eq!(soon(pool.run(|| Span::current().id())).await, Ok(None));
    }
}

/// The dispatcher is scoped, like those of tests and multi-tenant programs.
#[tokio::test]
async fn work_runs_with_the_callers_dispatcher() {
    let pool = one_thread();
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    let is_registry = || tracing::dispatcher::get_default(|it| it.is::<tracing_subscriber::Registry>());
    assert!(is_registry());
    assert_eq!(soon(pool.run(is_registry)).await, Ok(true));
}

#[tokio::test]
async fn task_local_reaches_the_pool_only_if_propagated() {
    for pool in pools(1, 8) {
        let read = || {
            service_fn(async |_: ()| {
                let first = TENANT.try_with(Clone::clone).ok();
                tokio::task::yield_now().await;
                TestResult::Ok((first, TENANT.try_with(Clone::clone).ok()))
            })
        };
        let plain = OffloadLayer::new(pool.clone()).reject(RejectWithError);
        let propagating =
            plain.clone().propagate_request(|(): &()| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
        let acme = || Some("acme".to_owned());
        TENANT
            .scope("acme".to_owned(), async {
                assert_eq!(soon(plain.layer(read()).oneshot(())).await.unwrap(), (None, None));
                assert_eq!(soon(propagating.layer(read()).oneshot(())).await.unwrap(), (acme(), acme()));
            })
            .await;
    }
}

#[tokio::test]
async fn propagated_value_is_in_scope_during_the_drop() {
    struct OnDrop(Arc<Mutex<Option<String>>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = TENANT.try_with(Clone::clone).ok();
        }
    }
    let (pool, seen) = (one_thread(), Arc::default());
    let layer = OffloadLayer::new(pool.clone())
        .reject(RejectWithError)
        .propagate_request(|_: &OnDrop| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
    let service = layer.layer(service_fn(async |guard: OnDrop| {
        std::future::pending::<()>().await;
        drop(guard);
        TestResult::Ok(())
    }));
    let call = TENANT.sync_scope("acme".to_owned(), || {
        let mut call = task::spawn(service.oneshot(OnDrop(Arc::clone(&seen))));
        assert_pending!(call.poll());
        call
    });
    eventually(|| pool.stats().started == 1 && pool.stats().active == 0).await;
    drop(call);
    eventually(|| pool.stats().in_flight == 0).await;
    assert_eq!(seen.lock().unwrap().as_deref(), Some("acme"));
}

#[tokio::test]
#[should_panic(expected = "did not call its second argument")]
async fn propagate_scope_that_does_not_poll_panics_with_a_remedy() {
    let layer = OffloadLayer::new(one_thread()).reject(RejectWithError).propagate_request(|(): &()| (), |(), _poll| {});
    let _ = soon(layer.layer(service_fn(async |()| TestResult::Ok(()))).oneshot(())).await;
}

/// Rayon may run a second call on the stack of a first one that yields.
#[tokio::test]
async fn nested_rayon_calls_restore_the_outer_context() {
    use tower_offload::{pool::Rayon, pool::cancellation_token};
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    // Two pools over one thread. A single pool does not start a second call before the first one
    // ends.
    let threads = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
    let (pool, inner) = (Rayon::new(threads.clone()), Rayon::new(threads));
    let outer = info_span!("outer");
    let id = outer.id();
    let (before, nested, after) = soon(
        async {
            pool.run(move || {
                let before = Span::current().id();
                let handle = tokio::runtime::Handle::current();
                let second =
                    info_span!("inner").in_scope(|| inner.run(|| Span::current().metadata().map(|it| it.name())));
                // The only thread yields, so rayon runs the second call on it.
                rayon::yield_now();
                let nested = handle.block_on(second);
                let _token = cancellation_token();
                (before, nested, Span::current().id())
            })
            .await
            .unwrap()
        }
        .instrument(outer),
    )
    .await;
    assert_eq!((before, after), (id.clone(), id));
    assert_eq!(nested, Ok(Some("inner")));
}
