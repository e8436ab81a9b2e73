//! Background tasks take no capacity from requests.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt};
use tower_offload::{
    Background, OffloadLayer, ThreadPool,
    after_response::{AfterResponse, AfterResponseLayer},
    offload::service_fn_blocking,
};

use crate::support::{ALL, Client, Latch, Setup, after_shutdown, on_each, within};

fn on_one_thread() -> Background {
    Background::builder().pool(ThreadPool::builder().threads(1).build().unwrap()).max_running(1).build()
}

#[tokio::test]
async fn requests_are_served_while_the_background_is_busy() {
    on_each(ALL, |stack| async move {
        let (background, latch) = (on_one_thread(), Latch::new());
        let door = latch.door();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            let door = door.clone();
            after.spawn_blocking(move || door.block()).unwrap();
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        client.get("/full/1").await;
        latch.reached().await;
        for size in 2..=20 {
            assert_eq!(client.get(&format!("/full/{size}")).await, (200, size));
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
        assert_eq!((background.stats().running, background.stats().completed), (1, 0));
        latch.open();
        assert_eq!(after_shutdown(&background).await.completed, 20);
    })
    .await;
}

/// The error comes before the response, and hooks still run.
#[tokio::test]
async fn full_background_rejects_tasks_but_not_requests() {
    on_each(ALL, |stack| async move {
        let latch = Latch::new();
        let background = Background::builder().max_tasks(1).build();
        let door = latch.door();
        let setup = Setup::on(stack).background(&background).registers(move |after, path| {
            let door = door.clone();
            let registered = after.spawn_blocking(move || door.block());
            assert_eq!(registered.is_ok(), path == "/full/1");
            assert!(registered.err().is_none_or(|rejected| rejected.is_full()));
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        for size in 1..=3 {
            assert_eq!(client.get(&format!("/full/{size}")).await, (200, size));
            site.record(&format!("/full/{size}")).await.is_flushed(size);
        }
        assert_eq!(background.stats().rejected, 2);
        latch.open();
    })
    .await;
}

/// Blocking handlers run on a pool while a blocking task occupies every thread of the background.
#[tokio::test]
async fn offloaded_requests_are_served_while_the_background_is_busy() {
    let (background, latch) = (on_one_thread(), Latch::new());
    let door = latch.door();
    let handler = service_fn_blocking(move |request: Request<()>| {
        let after = request.extensions().get::<AfterResponse>().unwrap();
        let door = door.clone();
        after.spawn_blocking(move || door.block()).unwrap();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
    });
    let pool = ThreadPool::builder().threads(1).build().unwrap();
    let service = AfterResponseLayer::new(background.clone()).layer(OffloadLayer::new(pool).layer(handler));
    for _ in 0..10 {
        let response = within(service.clone().oneshot(Request::new(()))).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
    }
    latch.reached().await;
    assert_eq!(background.stats().completed, 0);
    latch.open();
    assert_eq!(after_shutdown(&background).await.completed, 10);
}
