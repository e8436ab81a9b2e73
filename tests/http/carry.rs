//! E12: task-locals of outer layers, inside the offloaded work.

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
    TENANT.try_with(Clone::clone).unwrap_or_else(|_| "nobody".to_owned())
}

/// An outer layer that puts the request's tenant into a task-local.
async fn with_tenant(request: Request, next: Next) -> Response {
    let tenant = request.uri().path().trim_start_matches('/').to_owned();
    TENANT.scope(tenant, USER.scope(7, next.run(request))).await
}

/// Looks in the call, after an await, and on a thread of the pool each time.
async fn looks() -> String {
    let before = tenant();
    tokio::task::yield_now().await;
    assert!(is_pool_thread(&thread_name()));
    format!("{before} {} {}", tenant(), USER.try_with(|user| *user).unwrap_or(0))
}

fn routes() -> Router {
    Router::new().route("/{tenant}", get(looks))
}

/// E12
#[tokio::test]
async fn a_task_local_is_not_visible_by_itself() {
    within(async {
        let router = routes().layer(OffloadLayer::new(one_thread(8))).layer(from_fn(with_tenant));
        support::get(serve(router).await, "/alice").await.assert_ok("nobody nobody 0");
    })
    .await;
}

/// E12
#[tokio::test]
async fn a_carried_task_local_is_visible_and_is_each_requests_own() {
    within(async {
        let layer = OffloadLayer::new(one_thread(8))
            .carry(|_| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll))
            .carry(|_| USER.get(), |user, poll| USER.sync_scope(user, poll));
        let address = serve(routes().layer(layer).layer(from_fn(with_tenant))).await;
        let (alice, bob) = tokio::join!(support::get(address, "/alice"), support::get(address, "/bob"));
        alice.assert_ok("alice alice 7");
        bob.assert_ok("bob bob 7");
    })
    .await;
}

/// E12: the head is there to be read, too.
#[tokio::test]
async fn a_value_of_the_head_is_carried() {
    within(async {
        let layer = OffloadLayer::new(one_thread(8)).carry(
            |head| head.headers()["host"].to_str().unwrap().to_owned(),
            |host, poll| TENANT.sync_scope(host, poll),
        );
        support::get(serve(routes().layer(layer)).await, "/alice").await.assert_ok("test test 0");
    })
    .await;
}

/// E12: what was carried for one request is not left behind for the next one on the same thread.
#[tokio::test]
async fn what_was_carried_is_gone_after_the_call() {
    within(async {
        let pool = one_thread(8);
        let carries = OffloadLayer::new(pool.clone())
            .carry(|_| "carried".to_owned(), |tenant, poll| TENANT.sync_scope(tenant, poll));
        let router = Router::new()
            .nest("/carries", routes().layer(carries))
            .nest("/plain", routes().layer(OffloadLayer::new(pool)));
        let address = serve(router).await;
        support::get(address, "/carries/x").await.assert_ok("carried carried 0");
        support::get(address, "/plain/x").await.assert_ok("nobody nobody 0");
    })
    .await;
}

/// E12
#[tokio::test]
async fn a_carried_task_local_is_visible_in_the_drop_of_the_work() {
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
        let layer =
            OffloadLayer::new(one_thread(8)).carry(|_| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
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

/// The type of a layered service can be written down, for those who store one.
#[test]
fn the_service_of_a_layer_can_be_named() {
    use tower_layer::Layer;

    let _: Offload<()> = OffloadLayer::new(tower_offload::pool::Inline::new()).layer(());
}
