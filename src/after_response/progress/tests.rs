use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use proptest::prelude::*;

use super::{End, Progress, RequestLine};

fn request(method: Method, version: Version) -> Progress {
    Progress::new(RequestLine::new(&Request::builder().method(method).version(version).body(()).expect("valid")))
}

impl Progress {
    fn outcome_untracked(&self) -> crate::after_response::Outcome {
        self.outcome(self.end(), crate::after_response::Delivery::HandedOver, Duration::ZERO)
    }
}

fn respond(
    progress: &mut Progress,
    status: u16,
    headers: &[(&'static str, &'static str)],
    exact: Option<u64>,
    is_end: bool,
) {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.parse().expect("valid"), HeaderValue::from_static(value))).collect();
    progress.responded(StatusCode::from_u16(status).expect("valid"), &headers, exact, is_end, Duration::ZERO);
}

fn get() -> Progress {
    request(Method::GET, Version::HTTP_11)
}

fn frame(progress: &mut Progress, bytes: u64) {
    progress.polled();
    progress.data(bytes);
}

#[test]
fn without_a_response_it_is_the_handler_that_failed_or_was_dropped() {
    assert_eq!(get().outcome_untracked().end, End::NoResponse);
    let mut progress = get();
    progress.failed(Some("no".to_owned()));
    let outcome = progress.outcome_untracked();
    assert_eq!((outcome.end, outcome.error.as_deref(), outcome.status), (End::HandlerError, Some("no"), None));
}

#[test]
fn c4_an_empty_body_is_complete_unpolled() {
    let mut progress = get();
    respond(&mut progress, 200, &[], Some(0), true);
    assert_eq!(progress.outcome_untracked().end, End::Complete);
    let mut progress = get();
    respond(&mut progress, 200, &[("content-length", "0")], None, false);
    assert_eq!(progress.outcome_untracked().end, End::Complete, "nothing is to be asked for");
}

#[test]
fn c3_where_http_sends_no_body_it_is_complete_unpolled() {
    for (method, status) in
        [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304), (Method::CONNECT, 200), (Method::GET, 101)]
    {
        let mut progress = request(method, Version::HTTP_11);
        respond(&mut progress, status, &[("content-length", "100")], Some(100), false);
        let outcome = progress.outcome_untracked();
        assert_eq!((outcome.end, outcome.body_bytes), (End::Complete, 0), "{status}");
    }
    let mut progress = request(Method::CONNECT, Version::HTTP_11);
    respond(&mut progress, 403, &[], Some(100), false);
    assert_eq!(progress.outcome_untracked().end, End::NoResponse, "a refused CONNECT has a body like any other");
}

#[test]
fn an_unpolled_body_that_has_something_to_say_is_no_response() {
    let mut progress = get();
    respond(&mut progress, 200, &[], Some(100), false);
    assert_eq!(progress.outcome_untracked().end, End::NoResponse);
}

#[test]
fn c2_a_satisfied_length_is_complete_without_an_end() {
    let mut progress = get();
    respond(&mut progress, 200, &[("content-length", "10")], None, false);
    frame(&mut progress, 9);
    assert!(progress.may_end_silently());
    frame(&mut progress, 1);
    assert_eq!(progress.outcome_untracked().end, End::Complete);
}

#[test]
fn a_body_longer_than_its_length_is_cut_on_http1_only() {
    for (version, bytes, truncated) in [(Version::HTTP_11, 10, true), (Version::HTTP_2, 25, false)] {
        let mut progress = request(Method::GET, version);
        respond(&mut progress, 200, &[("content-length", "10")], None, false);
        frame(&mut progress, 25);
        let outcome = progress.outcome_untracked();
        assert_eq!((outcome.end, outcome.body_bytes, outcome.truncated), (End::Complete, bytes, truncated));
    }
}

#[test]
fn a_body_shorter_than_its_length_is_too_short_also_if_only_its_hint_said_so() {
    for headers in [&[("content-length", "10")][..], &[]] {
        let mut progress = get();
        respond(&mut progress, 200, headers, Some(10), false);
        frame(&mut progress, 9);
        progress.ended();
        assert_eq!(progress.outcome_untracked().end, End::BodyTooShort);
    }
    let mut progress = get();
    respond(&mut progress, 200, &[("transfer-encoding", "chunked")], Some(10), false);
    frame(&mut progress, 9);
    progress.ended();
    assert_eq!(progress.outcome_untracked().end, End::Complete, "chunks have no length to fall short of");
}

#[test]
fn c5_a_body_that_is_dropped_early_is_aborted() {
    let mut progress = get();
    respond(&mut progress, 200, &[], None, false);
    frame(&mut progress, 4_000_000);
    let outcome = progress.outcome_untracked();
    assert_eq!((outcome.end, outcome.body_bytes), (End::Aborted, 4_000_000));
}

#[test]
fn b8_an_error_of_the_body_counts_before_everything() {
    let mut progress = get();
    respond(&mut progress, 200, &[("content-length", "10")], None, false);
    frame(&mut progress, 10);
    progress.failed(Some("disk".to_owned()));
    assert_eq!(progress.outcome_untracked().end, End::BodyError);
}

#[test]
fn the_status_of_grpc_decides_about_its_success() {
    let grpc = ("content-type", "application/grpc+proto");
    let outcome = |leading: Option<&'static str>, trailing: Option<&'static str>| {
        let mut progress = request(Method::POST, Version::HTTP_2);
        let headers: Vec<_> = [grpc].into_iter().chain(leading.map(|status| ("grpc-status", status))).collect();
        respond(&mut progress, 200, &headers, None, leading.is_some());
        if let Some(status) = trailing {
            frame(&mut progress, 5);
            progress.trailers(&HeaderMap::from_iter([(
                "grpc-status".parse().expect("valid"),
                HeaderValue::from_static(status),
            )]));
        }
        progress.outcome_untracked()
    };
    assert!(outcome(None, Some("0")).is_success());
    assert!(!outcome(None, Some("13")).is_success());
    assert!(!outcome(Some("13"), None).is_success());
    assert!(!outcome(None, Some("what")).is_success());
    assert_eq!(outcome(None, None).grpc_status, None);
    assert!(!outcome(None, None).is_success(), "cut off before it was known");
}

proptest! {
    /// Whatever comes in whatever order: the count is right, and complete is said only if the end was seen or the length reached.
    #[test]
    fn complete_is_said_only_of_what_is(
        version in prop_oneof![Just(Version::HTTP_10), Just(Version::HTTP_11), Just(Version::HTTP_2)],
        declared in proptest::option::of(0_u64..50),
        frames in proptest::collection::vec(0_u64..20, 0..6),
        ended: bool,
    ) {
        let mut progress = request(Method::GET, version);
        respond(&mut progress, 200, &[], declared, false);
        let sum: u64 = frames.iter().sum();
        frames.iter().for_each(|bytes| frame(&mut progress, *bytes));
        if ended {
            progress.polled();
            progress.ended();
        }
        let outcome = progress.outcome_untracked();
        let satisfied = declared.is_some_and(|declared| sum >= declared);
        let whole = if ended { declared.is_none() || satisfied } else { satisfied };
        prop_assert_eq!(outcome.end == End::Complete, whole);
        let cut = version < Version::HTTP_2 && declared.is_some_and(|declared| sum > declared);
        prop_assert_eq!(outcome.truncated, cut);
        prop_assert_eq!(outcome.body_bytes, if cut { declared.unwrap_or_default() } else { sum });
    }
}
