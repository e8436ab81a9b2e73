//! Pipelined HTTP/1 requests.

use crate::support::{HTTP1, Http1, PLAIN_HTTP1, Setup, Stack, on_each};

const PATHS: [&str; 3] = ["/full/5", "/chunks/2/10", "/full/7"];

pub(crate) fn together(paths: &[&str]) -> String {
    paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nhost: site\r\n\r\n")).collect()
}

#[tokio::test]
async fn pipelined_response_is_flushed_with_its_own_bytes() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        let before = client.wire.read();
        client.send(together(&PATHS)).await;
        let mut lengths = Vec::new();
        for body in [5, 20, 7] {
            let answer = client.answer().await;
            assert_eq!(answer.body, body);
            lengths.push(answer.head.len() as u64 + body);
        }
        let mut end = before;
        for ((path, body), length) in PATHS.into_iter().zip([5, 20, 7]).zip(lengths) {
            end += length;
            let record = site.record(path).await;
            record.is_flushed(body);
            assert!(record.taken >= end, "{record:?} of {end}");
        }
    })
    .await;
}

#[tokio::test]
async fn response_is_flushed_while_the_next_handler_runs() {
    on_each(HTTP1, |stack| async move {
        let mut site = Setup::on(stack).start();
        let mut client = Http1::connect(&site).await;
        client.send(together(&["/full/5", "/wait/full/7"])).await;
        site.record("/full/5").await.is_flushed(5);
        site.handlers.reached().await;
        assert!(site.unasked().is_empty());
        site.handlers.open();
        client.answer().await;
        assert_eq!(client.answer().await.body, 7);
        site.record("/wait/full/7").await.is_flushed(7);
    })
    .await;
}

/// Stacks on which hyper's `pipeline_flush` can be set. It lets several responses share one flush.
pub(crate) fn with_one_flush() -> Vec<Stack> {
    HTTP1.iter().copied().filter(|stack| !stack.is_axum()).collect()
}

#[tokio::test]
async fn responses_that_share_a_flush_are_flushed_together() {
    on_each(&with_one_flush(), |stack| async move {
        let mut site = Setup::on(stack).pipeline_flush().start();
        let mut client = Http1::connect(&site).await;
        client.send(together(&PATHS)).await;
        for body in [5, 20, 7] {
            assert_eq!(client.answer().await.body, body);
        }
        for (path, body) in PATHS.into_iter().zip([5, 20, 7]) {
            let record = site.record(path).await;
            record.is_flushed(body);
            assert_eq!(record.taken, client.wire.read(), "{record:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn shared_flush_does_not_wait_for_a_running_handler() {
    on_each(&with_one_flush(), |stack| async move {
        let mut site = Setup::on(stack).pipeline_flush().start();
        let mut client = Http1::connect(&site).await;
        client.send(together(&["/full/5", "/full/6", "/wait/full/7"])).await;
        site.record("/full/5").await.is_flushed(5);
        site.record("/full/6").await.is_flushed(6);
        site.handlers.open();
        for body in [5, 6, 7] {
            assert_eq!(client.answer().await.body, body);
        }
        site.record("/wait/full/7").await.is_flushed(7);
    })
    .await;
}

/// The head of the gated response leaves in one write with the response before it.
#[tokio::test]
async fn response_that_shares_a_write_with_an_open_one_is_flushed() {
    on_each(&with_one_flush(), |stack| async move {
        let mut site = Setup::on(stack).pipeline_flush().start();
        let mut client = Http1::connect(&site).await;
        client.send(together(&["/full/10", "/gated/5/6"])).await;
        site.record("/full/10").await.is_flushed(10);
        assert_eq!(client.answer().await.body, 10);
        let head = client.head().await;
        assert!(site.unasked().is_empty());
        site.gate.open();
        assert_eq!(client.body_of(head).await.body, 11);
        site.record("/gated/5/6").await.is_flushed(11);
        assert_eq!(client.get("/full/7").await.body, 7);
        site.record("/full/7").await.is_flushed(7);
        site.sure_stats();
    })
    .await;
}

/// The first response is larger than the buffers of the socket.
#[tokio::test]
async fn response_after_a_stalled_one_is_flushed_after_it() {
    on_each(PLAIN_HTTP1, |stack| async move {
        let mut site = Setup::on(stack).small_buffers().start();
        let mut client = Http1::connect(&site).await;
        client.send(together(&["/full/2097152", "/full/5"])).await;
        site.body_dropped("/full/2097152").await;
        assert!(site.unasked().is_empty());
        let first = client.answer().await;
        let first_end = first.head.len() as u64 + first.body;
        client.answer().await;
        let record = site.record("/full/2097152").await;
        record.is_flushed(2 << 20);
        assert!(record.taken >= first_end, "{record:?}");
        let record = site.record("/full/5").await;
        record.is_flushed(5);
        assert_eq!(record.taken, client.wire.read());
    })
    .await;
}
