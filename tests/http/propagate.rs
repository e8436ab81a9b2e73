//! Propagation of task-locals of outer layers to the pool.

use std::future::pending;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tower_offload::{Offload, OffloadLayer};

use crate::support::{self, GET, Raw, is_pool_thread, one_thread, serve, thread_name, within};

tokio::task_local! {
    static TENANT: String;
    static USER: u32;
}

fn tenant() -> String {
    TENANT.try_with(Clone::clone).unwrap_or_else(|_| "none".to_owned())
}

/// Sets task-locals for the request, like an outer layer.
async fn with_tenant(request: Request, next: Next) -> Response {
    let tenant = request.uri().path().trim_start_matches('/').to_owned();
    TENANT.scope(tenant, USER.scope(7, next.run(request))).await
}

/// Reads the task-locals before and after an await.
async fn read_locals() -> String {
    let before = tenant();
    tokio::task::yield_now().await;
    assert!(is_pool_thread(&thread_name()));
    format!("{before} {} {}", tenant(), USER.try_with(|user| *user).unwrap_or(0))
}

fn routes() -> Router {
    Router::new().route("/{tenant}", get(read_locals))
}

#[tokio::test]
async fn task_local_is_not_visible_without_propagate() {
    within(async {
        let router = routes().layer(OffloadLayer::new(one_thread(8))).layer(from_fn(with_tenant));
        support::get(serve(router).await, "/alice").await.assert_ok("none none 0");
    })
    .await;
}

#[tokio::test]
async fn propagated_task_local_is_that_of_the_request() {
    within(async {
        let layer = OffloadLayer::new(one_thread(8))
            .propagate(|_| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll))
            .propagate(|_| USER.get(), |user, poll| USER.sync_scope(user, poll));
        let address = serve(routes().layer(layer).layer(from_fn(with_tenant))).await;
        let (alice, bob) = tokio::join!(support::get(address, "/alice"), support::get(address, "/bob"));
        alice.assert_ok("alice alice 7");
        bob.assert_ok("bob bob 7");
    })
    .await;
}

#[tokio::test]
async fn propagate_can_read_the_head() {
    within(async {
        let layer = OffloadLayer::new(one_thread(8)).propagate(
            |head| head.headers()["host"].to_str().unwrap().to_owned(),
            |host, poll| TENANT.sync_scope(host, poll),
        );
        support::get(serve(routes().layer(layer)).await, "/alice").await.assert_ok("test test 0");
    })
    .await;
}

/// The next request on the same thread does not see the value.
#[tokio::test]
async fn propagated_value_is_removed_after_the_call() {
    within(async {
        let pool = one_thread(8);
        let propagating = OffloadLayer::new(pool.clone())
            .propagate(|_| "propagated".to_owned(), |tenant, poll| TENANT.sync_scope(tenant, poll));
        let router = Router::new()
            .nest("/propagating", routes().layer(propagating))
            .nest("/plain", routes().layer(OffloadLayer::new(pool)));
        let address = serve(router).await;
        support::get(address, "/propagating/x").await.assert_ok("propagated propagated 0");
        support::get(address, "/plain/x").await.assert_ok("none none 0");
    })
    .await;
}

#[tokio::test]
async fn propagated_task_local_is_visible_in_the_drop() {
    struct OnDrop(UnboundedSender<(String, String)>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.send((tenant(), thread_name())).unwrap();
        }
    }

    within(async {
        let (drops, mut dropped) = unbounded_channel();
        let (enters, mut entered) = unbounded_channel();
        let handler = async move || {
            let _guard = OnDrop(drops.clone());
            enters.send(()).unwrap();
            pending::<()>().await;
        };
        let layer = OffloadLayer::new(one_thread(8))
            .propagate(|_| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
        let router = Router::new().fallback(handler).layer(layer).layer(from_fn(with_tenant));
        let client = Raw::with(serve(router).await, GET.replace("GET /", "GET /alice")).await;
        entered.recv().await.unwrap();
        drop(client);
        let (tenant, thread) = dropped.recv().await.unwrap();
        assert_eq!(tenant, "alice");
        assert!(is_pool_thread(&thread));
    })
    .await;
}

#[test]
fn type_of_a_layered_service_can_be_named() {
    use tower_layer::Layer;

    let _: Offload<()> = OffloadLayer::new(tower_offload::pool::Inline::new()).layer(());
}
