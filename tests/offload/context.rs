use std::sync::{Arc, Mutex};

use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_offload::{OffloadLayer, offload::Typed, pool::Pool};
use tracing::{Instrument, Span, info_span};

use crate::support::{Answer, eventually, one_thread, pools, soon};

tokio::task_local! {
    static TENANT: String;
}

#[tokio::test]
async fn e12_the_callers_span_is_the_current_one_in_every_poll_and_in_the_drop() {
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    for pool in pools(1, 8) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        struct OnDrop(Arc<Mutex<Vec<Option<tracing::Id>>>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.lock().unwrap().push(Span::current().id());
            }
        }
        let service = OffloadLayer::new(pool.clone()).reject(Typed).layer(service_fn({
            let seen = seen.clone();
            move |()| {
                let seen = seen.clone();
                seen.lock().unwrap().push(Span::current().id()); // in `call`
                async move {
                    let _guard = OnDrop(seen.clone());
                    seen.lock().unwrap().push(Span::current().id());
                    tokio::task::yield_now().await;
                    seen.lock().unwrap().push(Span::current().id());
                    Answer::Ok(())
                }
            }
        }));
        let span = info_span!("request");
        let id = span.id();
        assert!(id.is_some());
        soon(service.clone().oneshot(()).instrument(span)).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), vec![id; 4]);
        assert!(Span::current().id().is_none());
        // Nothing of it stays on the pool's thread.
        assert_eq!(soon(pool.run(|| Span::current().id())).await, Ok(None));
    }
}

/// A scoped dispatcher, as tests and multi-tenant programs have it, is current on the pool's thread as well.
#[tokio::test]
async fn e12_the_dispatcher_travels() {
    let pool = one_thread();
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    let is_registry = || tracing::dispatcher::get_default(|it| it.is::<tracing_subscriber::Registry>());
    assert!(is_registry());
    assert_eq!(soon(pool.run(is_registry)).await, Ok(true));
}

#[tokio::test]
async fn e12_a_task_local_travels_only_if_it_is_carried() {
    for pool in pools(1, 8) {
        let read = || {
            service_fn(async |_: ()| {
                let first = TENANT.try_with(Clone::clone).ok();
                tokio::task::yield_now().await;
                Answer::Ok((first, TENANT.try_with(Clone::clone).ok()))
            })
        };
        let plain = OffloadLayer::new(pool.clone()).reject(Typed);
        let carried =
            plain.clone().carry_request(|(): &()| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
        let acme = || Some("acme".to_owned());
        TENANT
            .scope("acme".to_owned(), async {
                assert_eq!(soon(plain.layer(read()).oneshot(())).await.unwrap(), (None, None));
                assert_eq!(soon(carried.layer(read()).oneshot(())).await.unwrap(), (acme(), acme()));
            })
            .await;
    }
}

#[tokio::test]
async fn e12_what_is_carried_is_in_place_for_the_drop_too() {
    struct OnDrop(Arc<Mutex<Option<String>>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = TENANT.try_with(Clone::clone).ok();
        }
    }
    let (pool, seen) = (one_thread(), Arc::default());
    let layer = OffloadLayer::new(pool.clone())
        .reject(Typed)
        .carry_request(|_: &OnDrop| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
    let service = layer.layer(service_fn(async |guard: OnDrop| {
        std::future::pending::<()>().await;
        drop(guard);
        Answer::Ok(())
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
#[should_panic(expected = "has to call its second argument")]
async fn a_scope_that_does_not_poll_is_told_so() {
    let layer = OffloadLayer::new(one_thread()).reject(Typed).carry_request(|(): &()| (), |(), _poll| {});
    let _ = soon(layer.layer(service_fn(async |()| Answer::Ok(()))).oneshot(())).await;
}

/// `cancelled()` and the span belong to the call that runs, also when rayon runs a second one on the stack of the first.
#[tokio::test]
async fn e12_contexts_are_put_back_when_rayon_nests_calls_on_one_thread() {
    use tower_offload::{offload::cancellation_token, pool::Rayon};
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry());
    // Two queues in front of the same one thread; one queue would not hand out a second call before the first ended.
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
                // The only thread waits here, and rayon has it run the second call meanwhile.
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
