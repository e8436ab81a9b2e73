//! Blocking iterators and readers as response bodies.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use axum::{Router, body::Body, response::Response, routing::get};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use tower_offload::{CallError, OffloadLayer, ThreadPool, offload::BlockingBody, pool::Pool};

use crate::support::{self, FullPool, GET, Latch, Raw, is_pool_thread, one_thread, serve, thread_name, within};

type Item = io::Result<Bytes>;

fn numbers() -> impl Iterator<Item = Item> + Send {
    (0_u8..3).map(|number| Ok(Bytes::from(number.to_string())))
}

/// Returns a route that responds with a body of `source`.
fn body_route<I>(pool: &ThreadPool, source: impl Fn() -> I + Clone + Send + Sync + 'static) -> Router
where
    I: Iterator<Item = Item> + Send + 'static,
{
    let pool = pool.clone();
    let handler = async move || Response::new(Body::new(BlockingBody::new(pool.clone(), source()).unwrap()));
    Router::new().route("/", get(handler))
}

/// Waits until a pool with one thread has polled every woken call. Woken calls precede new ones,
/// except for every eighth pick.
async fn settle(pool: &ThreadPool) {
    for _ in 0..6 {
        pool.run(|| ()).await.unwrap();
    }
}

async fn next(body: &mut BlockingBody) -> Option<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> {
    body.frame().await.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
}

/// Returns the body of a chunked response, up to the end of the connection.
async fn chunks_until_closed(mut client: Raw) -> String {
    let head = client.read_until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("transfer-encoding: chunked"), "{head}");
    client.read_to_end().await
}

#[tokio::test]
async fn items_arrive_in_order_over_http1() {
    within(async {
        let address = serve(body_route(&one_thread(8), numbers)).await;
        let mut client = Raw::with(address, GET).await;
        assert!(client.read_until("\r\n\r\n").await.contains("transfer-encoding: chunked"));
        assert_eq!(client.read_until("0\r\n\r\n").await, "1\r\n0\r\n1\r\n1\r\n1\r\n2\r\n0\r\n\r\n");
        client.write(GET).await; // the connection can be reused
        client.read_until("0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn hundred_bodies_share_one_thread() {
    within(async {
        let address = serve(body_route(&one_thread(256), numbers)).await;
        let bodies = futures_util::future::join_all((0..100).map(|_| support::get(address, "/"))).await;
        bodies.iter().for_each(|response| response.assert_ok("012"));
    })
    .await;
}

#[tokio::test]
async fn source_is_at_most_one_item_ahead() {
    within(async {
        let (pool, steps) = (one_thread(8), Arc::new(AtomicUsize::new(0)));
        let source = {
            let steps = steps.clone();
            (0_u8..5).map(move |number| {
                steps.fetch_add(1, SeqCst);
                Ok::<_, io::Error>(Bytes::from(vec![number]))
            })
        };
        let mut body = BlockingBody::new(pool.clone(), source).unwrap();
        settle(&pool).await;
        assert_eq!(steps.load(SeqCst), 1, "no item was taken yet");
        for taken in 1_u8..=5 {
            assert_eq!(next(&mut body).await.unwrap().unwrap(), [taken - 1].as_slice());
            settle(&pool).await;
            assert_eq!(steps.load(SeqCst), usize::from(taken + 1).min(5));
            assert!(!body.is_end_stream());
        }
        assert!(next(&mut body).await.is_none());
        assert!(body.is_end_stream());
        assert_eq!(pool.stats().in_flight, 0);
    })
    .await;
}

#[tokio::test]
async fn unread_body_occupies_no_thread() {
    within(async {
        let (pool, mut open) = (one_thread(1), Vec::new());
        for _ in 0..8 {
            let (steps, mut stepped) = tokio::sync::mpsc::unbounded_channel();
            let endless = std::iter::repeat_with(move || {
                steps.send(()).unwrap();
                Ok::<_, io::Error>(Bytes::from_static(b"x"))
            });
            // The queue has capacity for one call. A body has left the queue when it produces an
            // item.
            let body = BlockingBody::new(pool.clone(), endless).unwrap();
            stepped.recv().await.unwrap();
            open.push((body, stepped));
        }
        pool.run(|| ()).await.expect("a thread and a permit are available");
        assert_eq!((pool.stats().in_flight, pool.stats().rejected), (8, 0));
        for (body, _) in &mut open {
            assert_eq!(next(body).await.unwrap().unwrap(), "x");
        }
    })
    .await;
}

/// Sends the name of the thread that drops it.
struct OnDrop(mpsc::Sender<String>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(thread_name());
    }
}

#[tokio::test]
async fn dropped_body_drops_its_source_on_the_pool() {
    within(async {
        let (pool, (drops, dropped)) = (one_thread(8), mpsc::channel());
        let guard = OnDrop(drops);
        let source = std::iter::repeat_with(move || {
            let _ = &guard;
            Ok::<_, io::Error>(Bytes::from_static(b"x"))
        });
        let mut body = BlockingBody::new(pool.clone(), source).unwrap();
        next(&mut body).await.unwrap().unwrap();
        drop(body);
        settle(&pool).await;
        assert!(is_pool_thread(&dropped.try_recv().unwrap()));
        assert_eq!((pool.stats().in_flight, pool.stats().panicked), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn hang_up_drops_the_source_on_the_pool() {
    within(async {
        let (pool, (drops, dropped)) = (one_thread(8), mpsc::channel());
        let source = move || {
            let guard = OnDrop(drops.clone());
            std::iter::repeat_with(move || {
                let _ = &guard;
                Ok(Bytes::from(vec![b'x'; 64 * 1024]))
            })
        };
        let mut client = Raw::with(serve(body_route(&pool, source)).await, GET).await;
        client.read_until("\r\n\r\n").await;
        client.read_exact(1 << 20).await;
        drop(client);
        while pool.stats().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        assert!(is_pool_thread(&dropped.try_recv().unwrap()));
    })
    .await;
}

#[tokio::test]
async fn finished_source_is_dropped_on_the_pool() {
    within(async {
        let (drops, dropped) = mpsc::channel();
        let guard = OnDrop(drops);
        let source = numbers().inspect(move |_| {
            let _ = &guard;
        });
        let body = BlockingBody::new(one_thread(8), source).unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "012");
        assert!(is_pool_thread(&dropped.try_recv().unwrap()));
    })
    .await;
}

#[tokio::test]
async fn error_aborts_the_response() {
    within(async {
        let latch = Latch::new();
        let held = latch.clone();
        let source = move || {
            let held = held.clone();
            let fails = std::iter::once_with(move || {
                held.block();
                Err(io::Error::other("disk on fire"))
            });
            std::iter::once(Ok(Bytes::from("one"))).chain(fails).chain([Ok(Bytes::from("never"))])
        };
        let mut client = Raw::with(serve(body_route(&one_thread(8), source)).await, GET).await;
        client.read_until("3\r\none\r\n").await;
        latch.open();
        assert_eq!(client.read_to_end().await, "", "closed without the last chunk");
    })
    .await;
}

#[tokio::test]
async fn error_of_the_source_ends_the_body() {
    within(async {
        let source = [Ok(Bytes::from("one")), Err("disk on fire"), Ok(Bytes::from("never"))];
        let mut body = BlockingBody::new(one_thread(8), source).unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "one");
        assert_eq!(next(&mut body).await.unwrap().unwrap_err().to_string(), "disk on fire");
        assert!(next(&mut body).await.is_none());
    })
    .await;
}

#[tokio::test]
async fn panic_aborts_the_response() {
    within(async {
        let (pool, latch) = (one_thread(8), Latch::new());
        let held = latch.clone();
        let source = move || {
            let held = held.clone();
            let panics = std::iter::once_with(move || {
                held.block();
                panic!("expected panic")
            });
            std::iter::once(Ok(Bytes::from("one"))).chain(panics)
        };
        let router = body_route(&pool, source).route("/alive", get(async || "alive"));
        let address = serve(router).await;
        let mut client = Raw::with(address, GET).await;
        client.read_until("3\r\none\r\n").await;
        latch.open();
        assert_eq!(client.read_to_end().await, "", "closed without the last chunk");
        support::get(address, "/alive").await.assert_ok("alive");
        settle(&pool).await;
        assert_eq!((pool.stats().panicked, pool.threads()), (1, 1));
    })
    .await;
}

/// A reader that is interrupted before each read and returns chunks of unusual sizes.
struct Interrupted {
    rest: Bytes,
    interrupted: bool,
    fails: bool,
}

impl Interrupted {
    fn new(bytes: &Bytes) -> Self {
        Self { rest: bytes.clone(), interrupted: false, fails: false }
    }
}

impl Read for Interrupted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.rest.is_empty() && self.fails {
            return Err(io::Error::other("disk on fire"));
        }
        let length = self.rest.len().min(buffer.len()).min(9_999);
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

fn mebibyte() -> Bytes {
    (0..1_u32 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[tokio::test]
async fn reader_of_one_mebibyte_arrives_intact() {
    within(async {
        let (pool, bytes) = (one_thread(8), mebibyte());
        let (whole, interrupted_reader) = ((pool.clone(), bytes.clone()), (pool, bytes.clone()));
        let router = Router::new()
            .route(
                "/whole",
                get(async move || {
                    let body = BlockingBody::from_read(whole.0.clone(), io::Cursor::new(whole.1.clone())).unwrap();
                    Response::new(Body::new(body))
                }),
            )
            .route(
                "/interrupted_reader",
                get(async move || {
                    Response::new(Body::new(
                        BlockingBody::from_read(interrupted_reader.0.clone(), Interrupted::new(&interrupted_reader.1))
                            .unwrap(),
                    ))
                }),
            );
        let address = serve(router).await;
        assert!(support::get(address, "/whole").await.body == bytes);
        assert!(support::get(address, "/interrupted_reader").await.body == bytes, "interrupted reads are retried");
    })
    .await;
}

/// A reader that is always interrupted. It signals its first read.
struct NeverReads(Option<tokio::sync::oneshot::Sender<()>>);

impl Read for NeverReads {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        if let Some(entered) = self.0.take() {
            entered.send(()).unwrap();
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}

#[tokio::test]
async fn reader_interrupted_forever_ends_with_its_client() {
    within(async {
        let pool = one_thread(8);
        let (entered, inside) = tokio::sync::oneshot::channel();
        let body = BlockingBody::from_read(pool.clone(), NeverReads(Some(entered))).unwrap();
        inside.await.unwrap();
        drop(body);
        assert_eq!(pool.run(|| "free").await, Ok("free"));
    })
    .await;
}

#[tokio::test]
async fn reader_interrupted_forever_ends_with_its_pool() {
    within(async {
        let pool = one_thread(8);
        let (entered, inside) = tokio::sync::oneshot::channel();
        let mut body = BlockingBody::from_read(pool.clone(), NeverReads(Some(entered))).unwrap();
        inside.await.unwrap();
        assert_eq!(pool.shutdown(Duration::ZERO).await.running, 1);
        let error = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
        assert!(next(&mut body).await.is_none());
    })
    .await;
}

#[tokio::test]
async fn failed_read_ends_the_body_with_its_error() {
    within(async {
        let reader = Interrupted { fails: true, ..Interrupted::new(&Bytes::from_static(b"some")) };
        let mut body = BlockingBody::from_read(one_thread(8), reader).unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "some");
        assert_eq!(next(&mut body).await.unwrap().unwrap_err().to_string(), "disk on fire");
        assert!(next(&mut body).await.is_none());
    })
    .await;
}

#[tokio::test]
async fn body_truncated_by_shutdown_ends_with_an_error() {
    within(async {
        let pool = one_thread(8);
        let mut body = BlockingBody::new(pool.clone(), numbers()).unwrap();
        settle(&pool).await;
        assert_eq!(pool.shutdown(Duration::ZERO).await.parked, 1);
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "0", "the item that was produced in advance");
        let error = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&CallError::Closed));
        assert!(next(&mut body).await.is_none());
    })
    .await;
}

#[tokio::test]
async fn response_truncated_by_shutdown_looks_incomplete() {
    within(async {
        let pool = one_thread(8);
        let latch = Latch::new();
        let held = latch.clone();
        let source = move || {
            let held = held.clone();
            (0_u8..4).map(move |number| {
                if number == 2 {
                    held.block();
                }
                Ok(Bytes::from("x"))
            })
        };
        let client = Raw::with(serve(body_route(&pool, source)).await, GET).await;
        latch.reached().await;
        assert_eq!(pool.shutdown(Duration::ZERO).await.running, 1);
        latch.open();
        let body = chunks_until_closed(client).await;
        assert!(body.starts_with("1\r\nx\r\n") && !body.contains("0\r\n\r\n"), "{body:?}");
    })
    .await;
}

#[tokio::test]
async fn shutdown_lets_a_body_finish() {
    within(async {
        let pool = one_thread(8);
        let body = BlockingBody::new(pool.clone(), numbers()).unwrap();
        let shutdown = pool.shutdown(Duration::from_secs(30));
        let (report, body) = tokio::join!(shutdown, body.collect());
        assert!(report.is_empty());
        assert_eq!(body.unwrap().to_bytes(), "012");
        assert_eq!(BlockingBody::new(pool.clone(), numbers()).unwrap_err(), CallError::Closed);
    })
    .await;
}

#[tokio::test]
async fn full_pool_rejects_a_body_before_the_head() {
    within(async {
        let full = FullPool::new().await;
        assert_eq!(BlockingBody::new(full.pool.clone(), numbers()).unwrap_err(), CallError::Overloaded);
        assert_eq!(BlockingBody::from_read(full.pool.clone(), io::empty()).unwrap_err(), CallError::Overloaded);
        assert_eq!(full.pool.stats().rejected, 2);
        full.release().await;
    })
    .await;
}
#[tokio::test]
async fn rejected_body_is_answered_503() {
    within(async {
        let full = FullPool::new().await;
        let pool = full.pool.clone();
        let handler = async move || -> Result<BlockingBody, CallError> { BlockingBody::new(pool.clone(), numbers()) };
        let address = serve(Router::new().route("/", get(handler))).await;
        support::get(address, "/").await.assert_unavailable();
        full.release().await;
        support::get(address, "/").await.assert_ok("012");
    })
    .await;
}

/// hyper drops the body of a HEAD response without polling it.
#[tokio::test]
async fn head_drops_the_source() {
    within(async {
        let (pool, (drops, dropped)) = (one_thread(8), mpsc::channel());
        let source = move || {
            let guard = OnDrop(drops.clone());
            numbers().inspect(move |_| {
                let _ = &guard;
            })
        };
        let address = serve(body_route(&pool, source)).await;
        let response = support::send(address, support::request(http::Method::HEAD, "/", Body::empty())).await;
        response.assert_ok("");
        while pool.stats().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        assert!(is_pool_thread(&dropped.try_recv().unwrap()));
    })
    .await;
}

/// The body is a call within the offloaded call, and holds the permit until it ends.
#[tokio::test]
async fn body_of_an_offloaded_call_keeps_the_layers_permit() {
    within(async {
        let (pool, latch) = (one_thread(8), Latch::new());
        let held = latch.clone();
        let source = move || {
            let held = held.clone();
            (0_u8..2).map(move |number| {
                held.block();
                Ok(Bytes::from(number.to_string()))
            })
        };
        let address = serve(body_route(&pool, source).layer(OffloadLayer::new(pool.clone()).max_in_flight(1))).await;
        let mut client = Raw::with(address, GET).await;
        client.read_until("\r\n\r\n").await;
        latch.reached().await;
        support::get(address, "/").await.assert_unavailable();
        latch.open();
        assert_eq!(client.read_until("0\r\n\r\n").await, "1\r\n0\r\n1\r\n1\r\n0\r\n\r\n");
        while pool.stats().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        support::get(address, "/").await.assert_ok("01");
    })
    .await;
}
