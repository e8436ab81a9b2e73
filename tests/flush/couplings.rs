//! Behaviour of hyper, h2 and hyper-util on which the mapping of requests to HTTP/2 streams
//! depends. If a test fails after an update, outcomes are `HandedOver` at best, and the mapping
//! must be redesigned.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::ready,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::support::{HTTP2, PATIENCE, Setup, frames, on_each};

/// An event on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// h2 read the head of this stream.
    Delivered(u32),
    /// h2 polled for more, and the read was pending.
    Pending,
    /// hyper called the service for this path.
    Called(String),
}

type Steps = Arc<Mutex<Vec<Step>>>;

/// Returns one head, and is pending on the next read.
struct OneByOne {
    heads: VecDeque<(u32, Vec<u8>)>,
    is_shut: bool,
    steps: Steps,
}

impl AsyncRead for OneByOne {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_shut {
            self.is_shut = false;
            self.steps.lock().unwrap().push(Step::Pending);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Without a head left, the input has ended.
        if let Some((stream, mut bytes)) = self.heads.pop_front() {
            let rest = bytes.split_off(bytes.len().min(buf.remaining()));
            buf.put_slice(&bytes);
            if rest.is_empty() && stream > 0 {
                self.steps.lock().unwrap().push(Step::Delivered(stream));
                self.is_shut = true;
            } else if !rest.is_empty() {
                self.heads.push_front((stream, rest));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OneByOne {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sends streams 1 to 19. The malformed ones do not reach the service.
async fn steps_of(malformed: &[u32], is_auto: bool) -> Vec<Step> {
    let steps = Steps::default();
    let mut heads = VecDeque::from([(0, [frames::PREFACE, &frames::settings()].concat())]);
    for stream in (1..20).step_by(2) {
        let is_malformed = malformed.contains(&stream);
        let head = if is_malformed { frames::malformed(stream) } else { frames::get(stream, &format!("/{stream}")) };
        heads.push_back((stream, head));
    }
    let io = TokioIo::new(OneByOne { heads, is_shut: false, steps: steps.clone() });
    let called = steps.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        called.lock().unwrap().push(Step::Called(request.uri().path().to_owned()));
        ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"body")))))
    });
    // The connection ends when the input has ended.
    let _ = if is_auto {
        let connection = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
        connection.map_err(|error| error.to_string())
    } else {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(io, service).await.map_err(|error| error.to_string())
    };
    let steps = steps.lock().unwrap();
    steps.clone()
}

async fn check_delivery_before_the_second_read(is_auto: bool) {
    let malformed = [5, 7, 15];
    let steps = tokio::time::timeout(PATIENCE, steps_of(&malformed, is_auto)).await.unwrap();
    for stream in (1..20).step_by(2) {
        let delivered = steps.iter().position(|step| *step == Step::Delivered(stream)).unwrap();
        let next = steps[delivered + 1..].iter().position(|step| matches!(step, Step::Delivered(_)));
        let between = &steps[delivered + 1..next.map_or(steps.len(), |next| delivered + 1 + next)];
        let called = Step::Called(format!("/{stream}"));
        let is_expected = if malformed.contains(&stream) {
            between == [Step::Pending]
        } else {
            between == [Step::Pending, called.clone()]
                || between == [called.clone()]
                || between == [called, Step::Pending]
        };
        assert!(
            is_expected,
            "between the head of stream {stream} and the second read after it, hyper and h2 did {between:?}. They must \
             call the service before the second read (`h2::server::Connection::poll_accept`, and the loop around \
             `service.call` in `hyper::proto::h2::server`), because the gate opens on that read. All steps: {steps:?}"
        );
    }
}

#[tokio::test]
async fn hyper_calls_the_service_before_h2_reads_twice() {
    check_delivery_before_the_second_read(false).await;
}

#[tokio::test]
async fn hyper_util_auto_calls_the_service_before_h2_reads_twice() {
    check_delivery_before_the_second_read(true).await;
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
        // A malformed last head is counted by the next read, which may not have happened yet.
        let stats = site.sure_stats();
        assert_eq!(stats.flushed, (10 - malformed.len()) as u64);
        let last = usize::from(malformed.contains(&19));
        assert!((malformed.len() - last..=malformed.len()).contains(&(stats.undelivered as usize)), "{stats:?}");
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
