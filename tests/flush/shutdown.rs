//! Graceful shutdown with open responses.

use tower_offload::{
    Background,
    after_response::{Delivery, End},
};

use crate::support::{ALL, Client, HTTP1, HTTP2, Http1, Http2, Latch, Setup, after_shutdown, drain, on_each};

const BIG: u64 = 2 << 20;

#[tokio::test]
async fn stalled_http1_response_is_flushed_during_shutdown() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect(&site).await;
        client.send_get("/full/2097152").await;
        site.body_dropped("/full/2097152").await;
        site.shut_down();
        assert!(site.unasked().is_empty());
        assert_eq!(client.answer().await.body, BIG);
        site.record("/full/2097152").await.is_flushed(BIG);
        assert_eq!(client.rest().await, 0);
        drop(client);
        site.over().await;
    })
    .await;
}

#[tokio::test]
async fn stalled_http2_responses_are_flushed_during_shutdown() {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http2::with_windows(&site, 65_535, 1 << 20).await;
        let blocked = client.start("/full/2097152").await.await.unwrap();
        let waiting = client.start("/wait/full/5").await;
        site.handlers.reached().await;
        site.body_dropped("/full/2097152").await;
        site.shut_down();
        site.handlers.open();
        assert_eq!(drain(waiting.await.unwrap().into_body()).await.unwrap().0, 5);
        site.record("/wait/full/5").await.is_flushed(5);
        assert!(site.unasked().is_empty());
        assert_eq!(drain(blocked.into_body()).await.unwrap().0, BIG);
        site.record("/full/2097152").await.is_flushed(BIG);
        drop(client);
        site.over().await;
    })
    .await;
}

#[tokio::test]
async fn running_task_does_not_delay_the_shutdown() {
    on_each(ALL, |stack| async move {
        let (background, latch) = (Background::default(), Latch::new());
        let door = latch.door();
        let setup = Setup::on(stack).background(&background).registers(move |after, _| {
            let door = door.clone();
            after.spawn_blocking(move || door.block()).unwrap();
        });
        let mut site = setup.start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5").await;
        latch.reached().await;
        site.shut_down();
        client.hang_up().await;
        site.over().await;
        assert_eq!(background.stats().running, 1);
        latch.open();
        assert_eq!(after_shutdown(&background).await.completed, 1);
    })
    .await;
}

#[tokio::test]
async fn shutdown_without_responses_has_no_outcome() {
    on_each(ALL, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Client::connect(&site).await;
        client.get("/full/5").await;
        site.record("/full/5").await.is(End::Complete, Delivery::Flushed);
        site.shut_down();
        client.hang_up().await;
        site.over().await;
        assert!(site.unasked().is_empty());
    })
    .await;
}
