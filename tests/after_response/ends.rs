//! 5.2: one outcome on every path, for responses that a connection reads as it should. No more is polled than hyper polls.

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
use tower_offload::{
    AfterResponseLayer,
    after_response::{Delivery, End, Outcome, ResponseBody},
};

use crate::support::{Script, Step, frame, read, respond, told};

type Parts = (End, Delivery, u64);

fn parts(outcome: &Outcome) -> Parts {
    (outcome.end, outcome.delivery, outcome.body_bytes)
}

fn request(method: Method) -> Request<()> {
    Request::builder().method(method).body(()).unwrap()
}

/// The outcome if the connection does this with the response.
async fn outcome<B: Body<Error: std::fmt::Display>>(
    request: Request<()>,
    response: Response<B>,
    connection: impl FnOnce(ResponseBody<B>),
) -> Outcome {
    let mut outcome = None;
    let handler = async |after| {
        outcome = Some(told(&after));
        Ok::<_, Infallible>(response)
    };
    let response = respond(&AfterResponseLayer::default(), request, handler).await.unwrap();
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
async fn an_empty_body_is_complete_without_a_poll_c4() {
    for connection in [drop, |mut body: ResponseBody<Empty<Bytes>>| assert_eq!(read(&mut body), 0)] {
        let outcome = outcome(request(Method::GET), Response::new(Empty::new()), connection).await;
        assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 0));
    }
}

#[tokio::test]
async fn where_http_sends_no_body_it_is_complete_though_data_is_left_c3() {
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
async fn a_body_that_says_its_end_is_complete_without_being_asked_for_it_c1() {
    // Of a chunked one the length says nothing.
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

/// As a body does that another task fills: of its end it says one thing, and then another. What the connection was told counts.
#[tokio::test]
async fn a_body_that_told_the_connection_its_end_is_complete_whatever_it_says_before_and_after() {
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

    for (says_end, end) in [(true, End::Complete), (false, End::Aborted)] {
        let is_at_end = Arc::new(AtomicBool::new(false));
        let response = Response::new(Changing(is_at_end.clone()));
        let connection = |mut body: ResponseBody<_>| {
            assert!(frame(&mut body).is_some());
            is_at_end.store(says_end, SeqCst);
            assert_eq!(body.is_end_stream(), says_end);
            is_at_end.store(false, SeqCst);
        };
        assert_eq!(outcome(request(Method::GET), response, connection).await.end, end);
    }
}

#[tokio::test]
async fn a_satisfied_content_length_is_complete_without_an_end_c2() {
    let response = with_length(10, Script::new([Step::Data(6), Step::Data(4), Step::Pending]));
    let proxied = |mut body: ResponseBody<_>| assert_eq!(read(&mut body), 2);
    assert_eq!(
        parts(&outcome(request(Method::GET), response, proxied).await),
        (End::Complete, Delivery::HandedOver, 10)
    );
}

#[tokio::test]
async fn a_body_of_unknown_length_is_complete_at_its_end_only_and_counts_what_it_was_b1() {
    let response = Response::builder().status(201).header("x-kind", "test").body(Script::of(6)).unwrap();
    let outcome = outcome(request(Method::GET), response, consume).await;
    assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 6));
    assert_eq!((outcome.status, outcome.error.as_deref()), (Some(StatusCode::CREATED), None));
    assert_eq!(outcome.headers["x-kind"], "test");
    assert!(outcome.time_to_head.unwrap() <= outcome.total);
    assert!(outcome.is_success() && outcome.is_complete() && !outcome.is_flushed() && !outcome.truncated);
}

#[tokio::test]
async fn trailers_are_the_end_c6() {
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    let response = Response::new(Script::new([Step::Data(6), Step::Trailers(trailers), Step::Pending]));
    let until_trailers = |mut body: ResponseBody<_>| assert_eq!(read(&mut body), 2);
    assert_eq!(
        parts(&outcome(request(Method::GET), response, until_trailers).await),
        (End::Complete, Delivery::HandedOver, 6)
    );
}

#[tokio::test]
async fn a_body_shorter_than_its_length_was_delivered_on_http2_only() {
    for (version, delivery) in [(Version::HTTP_11, Delivery::None), (Version::HTTP_2, Delivery::HandedOver)] {
        let request = Request::builder().version(version).body(()).unwrap();
        let outcome = outcome(request, with_length(10, Script::of(4)), consume).await;
        assert_eq!(parts(&outcome), (End::BodyTooShort, delivery, 4));
    }
}

#[tokio::test]
async fn a_body_longer_than_its_length_is_cut_on_http1_only() {
    for (version, bytes) in [(Version::HTTP_11, 10), (Version::HTTP_2, 16)] {
        let request = Request::builder().version(version).body(()).unwrap();
        let outcome = outcome(request, with_length(10, Script::of(16)), consume).await;
        assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, bytes));
        assert_eq!(outcome.truncated, bytes == 10);
    }
}

#[tokio::test]
async fn a_client_that_leaves_aborts_at_the_byte_where_it_was_b6_c5() {
    let frames = (0..50).map(|_| Step::Data(1 << 20));
    let four_of_fifty = |mut body: ResponseBody<_>| (0..4).for_each(|_| assert!(frame(&mut body).is_some()));
    let outcome = outcome(request(Method::GET), Response::new(Script::new(frames)), four_of_fifty).await;
    assert_eq!(parts(&outcome), (End::Aborted, Delivery::None, 4 << 20));
    assert!(outcome.is_success() && !outcome.is_complete());
}

#[tokio::test]
async fn an_error_of_the_body_is_no_abort_and_its_text_is_kept_b8() {
    let response = Response::new(Script::new([Step::Data(6), Step::Error("disk")]));
    let outcome = outcome(request(Method::GET), response, consume).await;
    assert_eq!(parts(&outcome), (End::BodyError, Delivery::None, 6));
    assert_eq!(outcome.error.as_deref(), Some("disk"));
}

#[tokio::test]
async fn a_body_that_an_outer_layer_replaced_was_no_response() {
    let outcome = outcome(request(Method::GET), Response::new(Script::of(6)), drop).await;
    assert_eq!(parts(&outcome), (End::NoResponse, Delivery::None, 0));
    assert_eq!(outcome.status, Some(StatusCode::OK), "that is what the handler said");
}

#[tokio::test]
async fn whoever_polls_after_the_end_changes_nothing() {
    let polled_on = |mut body: ResponseBody<_>| {
        assert_eq!(read(&mut body), 1);
        (0..3).for_each(|_| assert!(frame(&mut body).is_none()));
    };
    let outcome = outcome(request(Method::GET), Response::new(Script::of(6)), polled_on).await;
    assert_eq!(parts(&outcome), (End::Complete, Delivery::HandedOver, 6));
}

/// 5.10: the time until the hooks get their turn is none of the response's.
#[tokio::test(start_paused = true)]
async fn the_total_is_the_time_to_the_end_and_not_to_the_hook() {
    let (second, mut outcome) = (std::time::Duration::from_secs(1), None);
    let handler = async |after| {
        outcome = Some(told(&after));
        tokio::time::sleep(second).await;
        Ok::<_, Infallible>(Response::new(Script::of(6)))
    };
    let response = respond(&AfterResponseLayer::default(), Request::new(()), handler).await.unwrap();
    tokio::time::advance(second).await;
    drop(response);
    tokio::time::advance(second).await; // before anything else has its turn
    let outcome = outcome.unwrap().await.unwrap();
    assert_eq!((outcome.time_to_head, outcome.total), (Some(second), 2 * second));
}
