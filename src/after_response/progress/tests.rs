use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use proptest::prelude::*;

use super::{End, Progress, RequestLine};

fn request(method: Method, version: Version) -> Progress {
    Progress::new(RequestLine::new(&Request::builder().method(method).version(version).body(()).expect("valid")))
}

impl Progress {
    fn outcome_untracked(&self) -> crate::after_response::Outcome {
        self.clone().into_outcome(self.end(), crate::after_response::Delivery::HandedOver, Duration::ZERO)
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
    progress.respond(StatusCode::from_u16(status).expect("valid"), &headers, exact, is_end, Duration::ZERO);
}

fn get() -> Progress {
    request(Method::GET, Version::HTTP_11)
}

fn frame(progress: &mut Progress, bytes: u64) {
    progress.set_polled();
    progress.add_data(bytes);
}

#[test]
fn missing_response_is_handler_error_or_no_response() {
    assert_eq!(get().outcome_untracked().end, End::NoResponse);
    let mut progress = get();
    progress.fail(Some("no".to_owned()));
    let outcome = progress.outcome_untracked();
    assert_eq!((outcome.end, outcome.error.as_deref(), outcome.status), (End::HandlerError, Some("no"), None));
}

#[test]
fn empty_body_is_complete_without_a_poll() {
    let mut progress = get();
    respond(&mut progress, 200, &[], Some(0), true);
    assert_eq!(progress.outcome_untracked().end, End::Complete);
    let mut progress = get();
    respond(&mut progress, 200, &[("content-length", "0")], None, false);
    assert_eq!(progress.outcome_untracked().end, End::Complete, "there is nothing to poll for");
}

#[test]
fn bodyless_response_is_complete_without_a_poll() {
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
    assert_eq!(progress.outcome_untracked().end, End::NoResponse, "a refused CONNECT has an ordinary body");
}

#[test]
fn body_that_was_never_polled_is_no_response() {
    let mut progress = get();
    respond(&mut progress, 200, &[], Some(100), false);
    assert_eq!(progress.outcome_untracked().end, End::NoResponse);
}

#[test]
fn reached_content_length_is_complete_without_an_end() {
    let mut progress = get();
    respond(&mut progress, 200, &[("content-length", "10")], None, false);
    frame(&mut progress, 9);
    assert!(progress.may_end_silently());
    frame(&mut progress, 1);
    assert_eq!(progress.outcome_untracked().end, End::Complete);
}

#[test]
fn body_over_its_length_is_truncated_on_http1_only() {
    for (version, bytes, truncated) in [(Version::HTTP_11, 10, true), (Version::HTTP_2, 25, false)] {
        let mut progress = request(Method::GET, version);
        respond(&mut progress, 200, &[("content-length", "10")], None, false);
        frame(&mut progress, 25);
        let outcome = progress.outcome_untracked();
        assert_eq!((outcome.end, outcome.body_bytes, outcome.truncated), (End::Complete, bytes, truncated));
    }
}

#[test]
fn body_under_its_length_or_size_hint_is_too_short() {
    for headers in [&[("content-length", "10")][..], &[]] {
        let mut progress = get();
        respond(&mut progress, 200, headers, Some(10), false);
        frame(&mut progress, 9);
        progress.end_body();
        assert_eq!(progress.outcome_untracked().end, End::BodyTooShort);
    }
    let mut progress = get();
    respond(&mut progress, 200, &[("transfer-encoding", "chunked")], Some(10), false);
    frame(&mut progress, 9);
    progress.end_body();
    assert_eq!(progress.outcome_untracked().end, End::Complete, "a chunked body has no declared length");
}

#[test]
fn body_dropped_before_its_end_is_aborted() {
    let mut progress = get();
    respond(&mut progress, 200, &[], None, false);
    frame(&mut progress, 4_000_000);
    let outcome = progress.outcome_untracked();
    assert_eq!((outcome.end, outcome.body_bytes), (End::Aborted, 4_000_000));
}

#[test]
fn body_error_takes_precedence() {
    let mut progress = get();
    respond(&mut progress, 200, &[("content-length", "10")], None, false);
    frame(&mut progress, 10);
    progress.fail(Some("disk".to_owned()));
    assert_eq!(progress.outcome_untracked().end, End::BodyError);
}

#[test]
fn grpc_status_decides_success() {
    let grpc = ("content-type", "application/grpc+proto");
    let outcome = |leading: Option<&'static str>, trailing: Option<&'static str>| {
        let mut progress = request(Method::POST, Version::HTTP_2);
        let headers: Vec<_> = [grpc].into_iter().chain(leading.map(|status| ("grpc-status", status))).collect();
        respond(&mut progress, 200, &headers, None, leading.is_some());
        if let Some(status) = trailing {
            frame(&mut progress, 5);
            progress.set_trailers(&HeaderMap::from_iter([(
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
    assert!(!outcome(None, None).is_success(), "the status never arrived");
}

proptest! {
    /// Random frames: bytes are counted, and the end is `Complete` only if it was seen or the
    /// length was reached.
    #[test]
    fn complete_requires_an_end_or_the_full_length(
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
            progress.set_polled();
            progress.end_body();
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
