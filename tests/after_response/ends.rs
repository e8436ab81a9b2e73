//! Outcomes of responses that a connection reads without errors. The tests poll no more than hyper
//! does.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full};
use tower_offload::after_response::{Delivery, End, Outcome, ResponseBody};

use futures_util::FutureExt;

use crate::support::{Script, Step, frame, hooks_only, outcome_of, read, respond};

type Parts = (End, Delivery, u64);

fn parts(outcome: &Outcome) -> Parts {
    (outcome.end, outcome.delivery, outcome.body_bytes)
}

fn request(method: Method) -> Request<()> {
    Request::builder().method(method).body(()).unwrap()
}

/// Returns the outcome after `connection` has read the body.
async fn outcome<B: Body<Error: std::fmt::Display>>(
    request: Request<()>,
    response: Response<B>,
    connection: impl FnOnce(ResponseBody<B>),
) -> Outcome {
    let mut outcome = None;
    let handler = async |after| {
        outcome = Some(outcome_of(&after));
        Ok::<_, Infallible>(response)
    };
    let response = respond(&hooks_only(), request, handler).await.unwrap();
    connection(response.into_body());
    outcome.unwrap().await.expect("the hook is called")
}

fn consume<B: Body + Unpin>(mut body: B) {
    read(&mut body);
}

fn with_length<B>(length: usize, body: B) -> Response<B> {
    Response::builder().header("content-length", length).body(body).unwrap()
}

#[tokio::test]
async fn empty_body_is_complete_without_a_poll() {
    for connection in [drop, |mut body: ResponseBody<Empty<Bytes>>| assert_eq!(read(&mut body), 0)] {
        let outcome = outcome(request(Method::GET), Response::new(Empty::new()), connection).await;
        assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 0));
    }
}

#[tokio::test]
async fn bodyless_response_is_complete_with_data_left() {
    for (method, status) in
        [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::GET, 101), (Method::CONNECT, 200)]
    {
        let response = Response::builder().status(status).body(Full::new(Bytes::from_static(b"left"))).unwrap();
        let outcome = outcome(request(method), response, drop).await;
        assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 0), "{status}");
        assert_eq!(outcome.status.unwrap(), status);
    }
}

#[tokio::test]
async fn reported_end_is_complete_without_polling_for_none() {
    // The declared length of a chunked body does not matter.
    for (field, value) in [("content-length", "9"), ("transfer-encoding", "chunked"), ("x-neither", "of these")] {
        let body = Full::new(Bytes::from_static(b"all of it"));
        let response = Response::builder().header(field, value).body(body).unwrap();
        let read_once = |mut body: ResponseBody<_>| {
            assert!(frame(&mut body).is_some());
            assert!(body.is_end_stream());
        };
        let outcome = outcome(request(Method::GET), response, read_once).await;
        assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 9), "{field}");
    }
}

/// A body that another task fills may change its answer to `is_end_stream`. The answer that the
/// connection received is final.
#[tokio::test]
async fn end_reported_to_the_connection_is_final() {
    struct Changing(Arc<AtomicBool>);
    impl Body for Changing {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"all")))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.load(SeqCst)
        }
    }

    for (reports_end, end) in [(true, End::Complete), (false, End::Aborted)] {
        let is_at_end = Arc::new(AtomicBool::new(false));
        let response = Response::new(Changing(is_at_end.clone()));
        let connection = |mut body: ResponseBody<_>| {
            assert!(frame(&mut body).is_some());
            is_at_end.store(reports_end, SeqCst);
            assert_eq!(body.is_end_stream(), reports_end);
            is_at_end.store(false, SeqCst);
        };
        assert_eq!(outcome(request(Method::GET), response, connection).await.end, end);
    }
}

#[tokio::test]
async fn reached_content_length_is_complete_without_an_end() {
    let response = with_length(10, Script::new([Step::Data(6), Step::Data(4), Step::Pending]));
    let proxied = |mut body: ResponseBody<_>| assert_eq!(read(&mut body), 2);
    assert_eq!(
        parts(&outcome(request(Method::GET), response, proxied).await),
        (End::Complete, Delivery::HandedOver, 10)
    );
}

#[tokio::test]
async fn body_of_unknown_length_is_complete_at_its_end() {
    let response = Response::builder().status(201).header("x-kind", "test").body(Script::of(6)).unwrap();
    let outcome = outcome(request(Method::GET), response, consume).await;
    assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 6));
    assert_eq!((outcome.status, outcome.error.as_deref()), (Some(StatusCode::CREATED), None));
    assert_eq!(outcome.headers["x-kind"], "test");
    assert!(outcome.time_to_head.unwrap() <= outcome.total);
    assert!(outcome.is_success() && outcome.is_complete() && !outcome.is_flushed() && !outcome.truncated);
}

#[tokio::test]
async fn trailers_end_the_body() {
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    let response = Response::new(Script::new([Step::Data(6), Step::Trailers(trailers), Step::Pending]));
    let until_trailers = |mut body: ResponseBody<_>| assert_eq!(read(&mut body), 2);
    assert_eq!(
        parts(&outcome(request(Method::GET), response, until_trailers).await),
        (End::Complete, Delivery::HandedOver, 6)
    );
}

#[tokio::test]
async fn body_under_its_length_is_handed_over_on_http2_only() {
    for (version, delivery) in [(Version::HTTP_11, Delivery::NotDelivered), (Version::HTTP_2, Delivery::HandedOver)] {
        let request = Request::builder().version(version).body(()).unwrap();
        let outcome = outcome(request, with_length(10, Script::of(4)), consume).await;
        assert_eq!(parts(&outcome), (End::BodyTooShort, delivery, 4));
    }
}

#[tokio::test]
async fn body_over_its_length_is_truncated_on_http1_only() {
    for (version, bytes) in [(Version::HTTP_11, 10), (Version::HTTP_2, 16)] {
        let request = Request::builder().version(version).body(()).unwrap();
        let outcome = outcome(request, with_length(10, Script::of(16)), consume).await;
        assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, bytes));
        assert_eq!(outcome.truncated, bytes == 10);
    }
}

#[tokio::test]
async fn early_drop_is_aborted_with_the_bytes_so_far() {
    let frames = (0..50).map(|_| Step::Data(1 << 20));
    let four_of_fifty = |mut body: ResponseBody<_>| (0..4).for_each(|_| assert!(frame(&mut body).is_some()));
    let outcome = outcome(request(Method::GET), Response::new(Script::new(frames)), four_of_fifty).await;
    assert_eq!(parts(&outcome), (End::Aborted, Delivery::NotDelivered, 4 << 20));
    assert!(outcome.is_success() && !outcome.is_complete());
}

#[tokio::test]
async fn body_error_is_reported_with_its_text() {
    let response = Response::new(Script::new([Step::Data(6), Step::Error("disk")]));
    let outcome = outcome(request(Method::GET), response, consume).await;
    assert_eq!(parts(&outcome), (End::BodyError, Delivery::NotDelivered, 6));
    assert_eq!(outcome.error.as_deref(), Some("disk"));
}

#[tokio::test]
async fn replaced_body_is_no_response() {
    let outcome = outcome(request(Method::GET), Response::new(Script::of(6)), drop).await;
    assert_eq!(parts(&outcome), (End::NoResponse, Delivery::NotDelivered, 0));
    assert_eq!(outcome.status, Some(StatusCode::OK), "the status is the handler's");
}

#[tokio::test]
async fn polls_after_the_end_change_nothing() {
    let polled_on = |mut body: ResponseBody<_>| {
        assert_eq!(read(&mut body), 1);
        (0..3).for_each(|_| assert!(frame(&mut body).is_none()));
    };
    let outcome = outcome(request(Method::GET), Response::new(Script::of(6)), polled_on).await;
    assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 6));
}

/// The delay until the hooks run does not count.
#[tokio::test(start_paused = true)]
async fn total_ends_with_the_response_and_not_with_the_hook() {
    let (second, mut outcome) = (std::time::Duration::from_secs(1), None);
    let handler = async |after| {
        outcome = Some(outcome_of(&after));
        tokio::time::sleep(second).await;
        Ok::<_, Infallible>(Response::new(Script::of(6)))
    };
    let response = respond(&hooks_only(), Request::new(()), handler).await.unwrap();
    tokio::time::advance(second).await;
    drop(response);
    tokio::time::advance(second).await; // before any other task runs
    let outcome = outcome.unwrap().await.unwrap();
    assert_eq!((outcome.time_to_head, outcome.total), (Some(second), 2 * second));
}

/// Nothing was registered when the response ended, but its handle still exists.
#[tokio::test(start_paused = true)]
async fn late_hook_gets_the_times_of_the_response() {
    let (second, mut kept) = (std::time::Duration::from_secs(1), None);
    let handler = async |after| {
        kept = Some(after);
        tokio::time::sleep(second).await;
        Ok::<_, Infallible>(Response::new(Script::of(6)))
    };
    let response = respond(&hooks_only(), Request::new(()), handler).await.unwrap();
    tokio::time::advance(second).await;
    drop(response);
    tokio::time::advance(second).await;
    let outcome = outcome_of(&kept.unwrap()).await.unwrap();
    assert_eq!((outcome.time_to_head, outcome.total), (Some(second), 2 * second));
}

/// Reports more data than fits in a counter if added twice.
struct Endless;

impl bytes::Buf for Endless {
    fn remaining(&self) -> usize {
        usize::MAX
    }

    fn chunk(&self) -> &[u8] {
        b"endless"
    }

    fn advance(&mut self, _: usize) {}
}

#[tokio::test]
async fn length_of_a_body_does_not_overflow() {
    let frames = (0..2).map(|_| Ok::<_, Infallible>(http_body::Frame::data(Endless)));
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let outcome = outcome(request(Method::GET), Response::new(body), |body| {
        let mut body = Box::pin(body);
        while let Some(Some(_)) = http_body_util::BodyExt::frame(&mut body).now_or_never() {}
    })
    .await;
    assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, u64::MAX));
}
