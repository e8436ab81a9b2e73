//! The streams of requests on HTTP/2: the transport appends a field to each request, and the
//! service finds the stream by it. If a test fails after an update of hyper or h2, they no longer
//! pass on that field as before.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::http2,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tower::Layer;
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::{Delivery, End, Outcome},
    flush::Tracker,
};

use crate::support::{HTTP2, Setup, WIDE_WINDOW, drain, frames, on_each, within};

type Outcomes = UnboundedReceiver<(String, Outcome)>;

/// Serves one connection in memory. The response has the fields of the request as its body, and its
/// outcome is sent. `late` calls the tracked service in the future that hyper spawns.
fn connect(tracker: &Tracker, late: bool, max_header_list_size: u32) -> (DuplexStream, Outcomes) {
    let (client, server) = duplex(1 << 20);
    let (sender, outcomes) = unbounded_channel();
    let handler = tower::service_fn(move |request: Request<Incoming>| {
        let (sender, path) = (sender.clone(), request.uri().path().to_owned());
        let after = request.extensions().get::<AfterResponse>().unwrap();
        after.hook(move |outcome| sender.send((path, outcome.clone())).unwrap());
        let body = format!("{:?}", request.headers());
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body)))) }
    });
    let handler = AfterResponseLayer::new(Background::default()).layer(handler);
    let handler = hyper_util::service::TowerToHyperService::new(handler);
    let (io, tracked) = tracker.track(TokioIo::new(server), handler);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(max_header_list_size);
    if late {
        let tracked = Arc::new(tracked);
        let service = service_fn(move |request| {
            let tracked = tracked.clone();
            async move {
                tokio::task::yield_now().await;
                tracked.call(request).await
            }
        });
        tokio::spawn(builder.serve_connection(io, service));
    } else {
        tokio::spawn(builder.serve_connection(io, tracked));
    }
    (client, outcomes)
}

async fn handshake(io: DuplexStream) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WIDE_WINDOW).initial_connection_window_size(WIDE_WINDOW);
    let (client, connection) = builder.handshake::<_, Bytes>(io).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    client
}

/// The field is larger than the maximum frame size in some of the requests, and the client uses
/// indexed fields, trailers and the name of the mark.
#[tokio::test]
async fn handler_sees_the_fields_of_the_client() {
    within(async {
        for late in [false, true] {
            let tracker = Tracker::new();
            let (io, mut outcomes) = connect(&tracker, late, 1 << 20);
            let mut client = handshake(io).await;
            for (number, size) in (0..400).chain((16_100..16_500).step_by(3)).chain([40_000]).enumerate() {
                client = client.ready().await.unwrap();
                let mut request = Request::post(format!("http://site/{number}")).header("x-large", "~".repeat(size));
                for age in 0..number % 3 {
                    request = request.header("www-authenticate", age);
                }
                let expected = format!("{:?}", request.headers_ref().unwrap());
                let (response, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
                body.send_trailers([(http::header::WWW_AUTHENTICATE, "9".parse().unwrap())].into_iter().collect())
                    .unwrap();
                let mut body = response.await.unwrap().into_body();
                let mut received = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    received.extend(data);
                }
                assert_eq!(String::from_utf8(received).unwrap(), expected);
                let (path, outcome) = outcomes.recv().await.unwrap();
                let seen = (&*path, outcome.delivery, outcome.body_bytes);
                assert_eq!(seen, (&*format!("/{number}"), Delivery::Flushed, expected.len() as u64));
            }
            assert_eq!(tracker.stats().undelivered + tracker.stats().unmapped, 0);
        }
    })
    .await;
}

/// Each frame is padded, so the field precedes its padding.
#[tokio::test]
async fn padded_requests_are_flushed() {
    within(async {
        let tracker = Tracker::new();
        let (mut io, mut outcomes) = connect(&tracker, false, 1 << 14);
        let mut bytes = [frames::PREFACE, &frames::settings()].concat();
        for number in 0..100_u8 {
            let plain = frames::get(2 * u32::from(number) + 1, &format!("/{number}"));
            let payload = [&[number][..], &plain[9..], &vec![0; number.into()]].concat();
            bytes.extend(frames::frame(1, 0xd, 2 * u32::from(number) + 1, &payload));
        }
        io.write_all(&bytes).await.unwrap();
        for _ in 0..100 {
            let (path, outcome) = outcomes.recv().await.unwrap();
            assert_eq!(
                (outcome.end, outcome.delivery, outcome.body_bytes),
                (End::Complete, Delivery::Flushed, 2),
                "{path}"
            );
        }
    })
    .await;
}

/// A block that ends within a string takes the appended field for the rest of it.
#[tokio::test]
async fn truncated_field_cannot_name_another_stream() {
    within(async {
        for missing in 1..40_u8 {
            for huffman in [0, 0x80] {
                let tracker = Tracker::new();
                let (mut io, mut outcomes) = connect(&tracker, false, 1 << 14);
                let mut block = frames::get(3, "/truncated")[9..].to_vec();
                // The value of `www-authenticate` looks like a mark, but its secret is unknown.
                block.extend([0x0f, 46, 16, 0xff, 0xff, 0xff, 0xff, 0xff]);
                block.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x81, 0x80, 0x80, 0x80, 0x80]);
                block.extend([0x00, 1, b'x', huffman | missing]);
                let requests = [frames::get(1, "/whole"), frames::frame(1, 0x5, 3, &block)].concat();
                io.write_all(&[frames::PREFACE, &frames::settings(), &requests].concat()).await.unwrap();
                io.shutdown().await.unwrap();
                while let Some((path, outcome)) = outcomes.recv().await {
                    assert!(path == "/whole" || outcome.delivery != Delivery::Flushed, "{missing}: {outcome:?}");
                }
                assert_eq!(tracker.stats().mismatched, 0);
            }
        }
    })
    .await;
}

/// A service in between calls the tracked one later, in another order, and on another task.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn late_call_keeps_its_own_stream() {
    within(async {
        let tracker = Tracker::new();
        let (io, mut outcomes) = connect(&tracker, true, 1 << 14);
        let mut client = handshake(io).await;
        let mut responses = Vec::new();
        for number in 0..100 {
            client = client.ready().await.unwrap();
            let request =
                Request::get(format!("http://site/{number}")).header("x", "~".repeat(number)).body(()).unwrap();
            responses.push(client.send_request(request, true).unwrap().0);
        }
        for response in responses {
            drain(response.await.unwrap().into_body()).await.unwrap();
        }
        for _ in 0..100 {
            let (path, outcome) = outcomes.recv().await.unwrap();
            assert_eq!((outcome.end, outcome.delivery), (End::Complete, Delivery::Flushed), "{path}");
        }
        let stats = tracker.stats();
        assert_eq!((stats.flushed, stats.unmapped, stats.mismatched), (100, 0, 0), "{stats:?}");
    })
    .await;
}

/// Sends ten heads in one segment, some malformed, and checks that each handler gets the outcome of
/// its own stream.
async fn check_segment(malformed: &'static [u32]) {
    on_each(HTTP2, |stack| async move {
        let mut site = Setup::on(stack).start();
        let (mut io, _wire) = site.connect().await;
        let mut bytes = [frames::PREFACE, &frames::settings()].concat();
        let streams = (1..=19).step_by(2);
        for stream in streams.clone() {
            let is_malformed = malformed.contains(&stream);
            bytes.extend(if is_malformed {
                frames::malformed(stream)
            } else {
                frames::get(stream, &format!("/full/{}", 1000 + stream))
            });
        }
        io.write_all(&bytes).await.unwrap();
        io.flush().await.unwrap();
        for stream in streams.filter(|stream| !malformed.contains(stream)) {
            // The outcome of another stream would have another length and be handed over.
            let record = site.record(&format!("/full/{}", 1000 + stream)).await;
            record.is_flushed(u64::from(1000 + stream));
            if !stack.is_tls() {
                assert!(record.taken >= record.peer.wire.end_of(stream).unwrap(), "{record:?}");
            }
        }
        assert_eq!(site.registered(), 10 - malformed.len());
        let stats = site.sure_stats();
        assert_eq!((stats.flushed, stats.undelivered), ((10 - malformed.len()) as u64, malformed.len() as u64));
        assert!(site.unasked().is_empty());
    })
    .await;
}

#[tokio::test]
async fn malformed_second_head_of_a_segment() {
    check_segment(&[3]).await;
}

#[tokio::test]
async fn malformed_fourth_head_of_a_segment() {
    check_segment(&[7]).await;
}

#[tokio::test]
async fn malformed_first_and_last_heads_of_a_segment() {
    check_segment(&[1, 3, 5, 19]).await;
}

#[tokio::test]
async fn malformed_every_other_head_of_a_segment() {
    check_segment(&[1, 5, 9, 13, 17]).await;
}
