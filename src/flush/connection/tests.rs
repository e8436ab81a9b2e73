use std::{io::IoSlice, sync::Mutex as StdMutex};

use super::*;
use crate::{
    AfterResponse, Background,
    after_response::{Delivery, End, FlushOutcome::*, TestResponse},
    flush::{
        state::MAX_HTTP1_RESPONSES,
        tests::{
            generated::{data, headers, reset},
            scripted::{FLUSHED, begin, begin_on, begin_stream, begin_with, connection, flushed, stats},
        },
    },
};

const CANCEL: u32 = 8;
const NO_ERROR: u32 = 0;

fn http1() -> (Arc<Connection>, Arc<Counters>) {
    let (connection, counters) = connection();
    connection.set_protocol(Protocol::Http1);
    (connection, counters)
}

fn http2() -> (Arc<Connection>, Arc<Counters>) {
    let (connection, counters) = connection();
    connection.set_protocol(Protocol::Http2);
    (connection, counters)
}

fn flush(connection: &Connection) {
    if connection.begin_flush() {
        connection.end_flush();
    }
}

fn accept(connection: &Connection, bytes: &[u8]) {
    connection.accept(&[IoSlice::new(bytes)], bytes.len());
}

fn outcomes<const N: usize>(responses: [&TestResponse; N]) -> [Option<FlushOutcome>; N] {
    responses.map(TestResponse::flush_outcome)
}

/// A response whose flush is called, with its handle.
fn flushing(state: &mut State, completions: &mut Completions) -> AfterResponse {
    let (response, waiter) = TestResponse::new(Version::HTTP_11);
    state.begin_http1(waiter, completions);
    response.end();
    assert!(state.begin_flush(completions));
    response.handle(&Background::default())
}

/// Its waiter is not completed yet.
#[test]
fn acknowledgement_is_not_requested_after_the_flush() {
    let (mut state, mut completions) = (State::default(), Completions::default());
    let handle = flushing(&mut state, &mut completions);
    state.end_flush(&mut completions);
    assert!(!handle.request_acknowledgement());
    assert!(completions.awaiting.is_empty() && !completions.is_empty());
}

#[test]
fn acknowledgement_that_was_requested_may_be_requested_again() {
    let (mut state, mut completions) = (State::default(), Completions::default());
    let handle = flushing(&mut state, &mut completions);
    assert!(handle.request_acknowledgement() && handle.request_acknowledgement());
    state.end_flush(&mut completions);
    assert_eq!(completions.awaiting.len(), 1);
    assert!(handle.request_acknowledgement());
}

#[test]
fn acknowledgement_of_an_incomplete_response_is_not_requested() {
    let (response, _waiter) = TestResponse::new(Version::HTTP_11);
    response.abandon();
    assert!(!response.handle(&Background::default()).request_acknowledgement());
}

#[test]
fn http1_flush_counts_if_called_after_the_end_of_the_body() {
    let (connection, counters) = http1();
    let response = begin(&connection, Version::HTTP_11);
    flush(&connection);
    assert_eq!(response.flush_outcome(), None);

    let called_before = connection.begin_flush();
    response.end();
    assert!(!called_before);
    assert_eq!(response.flush_outcome(), None);

    flush(&connection);
    assert_eq!(response.flush_outcome(), Some(FLUSHED));
    flush(&connection);
    connection.lose();
    assert_eq!(response.flush_outcome(), Some(FLUSHED));
    assert_eq!(counters.stats(), stats(|stats| stats.flushed = 1));
}

#[test]
fn one_flush_covers_all_responses_that_ended_before_it() {
    let (connection, _) = http1();
    let responses: [TestResponse; 3] = std::array::from_fn(|_| begin(&connection, Version::HTTP_11));
    responses[0].end();
    responses[1].end();
    assert!(connection.begin_flush());
    responses[2].end();
    connection.end_flush();
    assert_eq!(outcomes(responses.each_ref()), [Some(FLUSHED), Some(FLUSHED), None]);
    flush(&connection);
    assert_eq!(responses[2].flush_outcome(), Some(FLUSHED));
}

#[test]
fn abandoned_http1_response_does_not_delay_the_next() {
    let (connection, counters) = http1();
    let [abandoned, response] = std::array::from_fn(|_| begin(&connection, Version::HTTP_11));
    abandoned.abandon();
    response.end();
    flush(&connection);
    assert_eq!(response.flush_outcome(), Some(FLUSHED));
    assert_eq!(counters.stats(), stats(|stats| stats.flushed = 1));
    let _held = lock(&connection.state);
    assert!(!connection.begin_flush(), "nothing is left");
}

#[test]
fn responses_over_the_limit_are_only_handed_over() {
    let (connection, counters) = http1();
    let responses: Vec<_> = (0..=MAX_HTTP1_RESPONSES).map(|_| begin(&connection, Version::HTTP_11)).collect();
    responses.iter().for_each(TestResponse::end);
    let (over, within) = responses.split_last().unwrap();
    assert_eq!(over.flush_outcome(), Some(GaveUp));
    flush(&connection);
    assert!(within.iter().all(|response| response.flush_outcome() == Some(FLUSHED)));
    let expected = stats(|stats| (stats.flushed, stats.gave_up) = (MAX_HTTP1_RESPONSES as u64, 1));
    assert_eq!(counters.stats(), expected);
}

#[test]
fn flush_without_open_responses_takes_no_lock() {
    for (connection, _) in [http1(), http2()] {
        let _held = lock(&connection.state);
        flush(&connection);
    }
}

#[test]
fn http1_bytes_take_no_lock() {
    let (connection, _) = http1();
    let _held = lock(&connection.state);
    accept(&connection, b"HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn lost_connection_loses_open_and_later_responses() {
    let (connection, counters) = http1();
    let [ended, open] = std::array::from_fn(|_| begin(&connection, Version::HTTP_11));
    ended.end();
    connection.lose();
    connection.lose();
    let late = begin(&connection, Version::HTTP_11);
    flush(&connection);
    assert_eq!(outcomes([&ended, &open, &late]), [Some(Lost); 3]);
    assert_eq!(counters.stats(), stats(|stats| stats.lost = 1), "only one body had ended");

    let (connection, counters) = http2();
    let open = begin_stream(&connection, 1);
    connection.open_stream(StreamId::new(3));
    connection.lose();
    let late = begin_on(&connection, 3);
    assert_eq!(outcomes([&open, &late]), [Some(Lost); 2]);
    connection.open_stream(StreamId::new(5));
    assert!(!connection.follows(StreamId::new(5)));
    assert_eq!(counters.stats(), stats(|stats| (stats.lost, stats.undelivered) = (2, 1)));
}

#[test]
fn http2_flush_counts_after_the_end_was_accepted() {
    let (connection, counters) = http2();
    let (one, three) = (begin_stream(&connection, 1), begin_stream(&connection, 3));
    accept(&connection, &[headers(1, false), data(1, 500, false), headers(3, false), data(3, 7, true)].concat());
    assert_eq!(three.flush_outcome(), None);
    flush(&connection);
    assert_eq!(outcomes([&one, &three]), [None, Some(flushed(7))]);
    accept(&connection, &data(1, 500, true));
    flush(&connection);
    assert_eq!(one.flush_outcome(), Some(flushed(1000)));
    assert_eq!(counters.stats(), stats(|stats| stats.flushed = 2));
}

#[test]
fn frames_sent_before_the_preface_is_read_are_parsed() {
    let (connection, _) = connection();
    let settings = crate::flush::tests::generated::frame(4, 0, 0, &[0; 12]);
    accept(&connection, &settings[..11]);
    connection.set_protocol(Protocol::Http2);
    accept(&connection, &settings[11..]);
    let response = begin_stream(&connection, 1);
    accept(&connection, &headers(1, true));
    flush(&connection);
    assert_eq!(response.flush_outcome(), Some(flushed(0)));
}

#[test]
fn reset_before_the_flush_loses_the_response() {
    let (connection, counters) = http2();
    let ended = begin_stream(&connection, 1);
    accept(&connection, &headers(1, true));
    connection.reset_stream(StreamId::new(1));
    flush(&connection);
    assert_eq!(ended.flush_outcome(), Some(Lost), "the client does not have it");

    let reported = begin_stream(&connection, 3);
    accept(&connection, &headers(3, true));
    flush(&connection);
    connection.reset_stream(StreamId::new(3));
    accept(&connection, &reset(3, CANCEL));
    assert_eq!(reported.flush_outcome(), Some(flushed(0)));

    let sent = begin_stream(&connection, 5);
    accept(&connection, &[headers(5, false), reset(5, CANCEL)].concat());
    assert_eq!(sent.flush_outcome(), Some(Lost), "at once");

    let complete = begin_stream(&connection, 7);
    accept(&connection, &[headers(7, true), reset(7, NO_ERROR)].concat());
    flush(&connection);
    assert_eq!(complete.flush_outcome(), Some(flushed(0)), "it only stops the request");
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.lost) = (2, 2)));
}

#[test]
fn response_to_a_stream_that_was_reset_is_lost_at_once() {
    let (connection, _) = http2();
    connection.open_stream(StreamId::new(1));
    connection.reset_stream(StreamId::new(1));
    assert_eq!(begin_on(&connection, 1).flush_outcome(), Some(Lost));
}

#[test]
fn response_without_a_stream_is_unmapped_at_once() {
    let (connection, counters) = http2();
    assert_eq!(begin(&connection, Version::HTTP_2).flush_outcome(), Some(Unmapped));
    assert_eq!(counters.stats(), stats(|stats| stats.unmapped = 1));
}

#[test]
fn request_of_another_protocol_than_the_bytes_is_unmapped() {
    for (speak, version) in [
        (http1 as fn() -> _, Version::HTTP_2),
        (http2, Version::HTTP_11),
        (connection, Version::HTTP_11),
        (connection, Version::HTTP_2),
    ] {
        let (connection, counters) = speak();
        connection.open_stream(StreamId::new(1));
        let response = begin_with(&connection, version, &mut connection.fields(StreamId::new(1)));
        assert_eq!(response.flush_outcome(), Some(Unmapped));
        assert_eq!(counters.stats(), stats(|stats| stats.unmapped = 1));
    }
}

#[test]
fn malformed_outbound_bytes_end_tracking_once() {
    let (connection, counters) = http2();
    let (ended, open) = (begin_stream(&connection, 1), begin_stream(&connection, 3));
    accept(&connection, &headers(1, true));
    for _ in 0..2 {
        accept(&connection, &data(0, 1, false));
    }
    flush(&connection);
    connection.lose();
    assert_eq!(outcomes([&ended, &open]), [Some(GaveUp); 2]);

    connection.open_stream(StreamId::new(5));
    assert!(!connection.follows(StreamId::new(5)));
    assert_eq!(begin_on(&connection, 5).flush_outcome(), Some(GaveUp));
    assert_eq!(counters.stats(), stats(|stats| stats.gave_up = 3));
}

#[test]
fn resets_before_malformed_bytes_count() {
    let (connection, _) = http2();
    let (one, three) = (begin_stream(&connection, 1), begin_stream(&connection, 3));
    accept(&connection, &[reset(1, CANCEL), data(0, 1, false)].concat());
    assert_eq!(outcomes([&one, &three]), [Some(Lost), Some(GaveUp)]);
}

#[test]
fn stream_that_ends_without_a_request_is_undelivered() {
    let (connection, counters) = http2();
    [1, 3, 5].into_iter().for_each(|stream| connection.open_stream(StreamId::new(stream)));
    accept(&connection, &[reset(1, 1), headers(3, true)].concat());
    flush(&connection);
    connection.reset_stream(StreamId::new(5));
    assert_eq!(counters.stats(), stats(|stats| stats.undelivered = 2), "the client has reset the last one");
}

#[test]
fn http2_response_without_progress_is_given_up() {
    let (connection, counters) = http2();
    let [ended, slow, open] = [1, 3, 5].map(|stream| begin_stream(&connection, stream));
    ended.end();
    slow.end();
    connection.give_up_stalled(0);
    accept(&connection, &[headers(3, false), data(3, 5000, false)].concat());
    connection.give_up_stalled(5000);
    assert_eq!(outcomes([&ended, &slow, &open]), [Some(Stalled), None, None]);

    accept(&connection, &[headers(1, true), data(3, 1, true), headers(5, true)].concat());
    flush(&connection);
    assert_eq!(outcomes([&ended, &slow, &open]), [Some(Stalled), Some(flushed(5001)), Some(flushed(0))]);
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.mismatched, stats.stalled) = (2, 1, 1)));
    assert!(!connection.has_open());
}

/// hyper keeps the body while the client grants no window.
#[test]
fn given_up_response_has_an_outcome_before_its_body_is_dropped() {
    let (connection, _) = http2();
    let response = begin_stream(&connection, 1);
    response.end_and_keep();
    connection.give_up_stalled(0);
    assert_eq!(response.outcome(), None);
    connection.give_up_stalled(0);
    let outcome = response.outcome().unwrap();
    assert_eq!((outcome.end, outcome.delivery), (End::Complete, Delivery::HandedOver));
    response.drop_ended();
    connection.lose();
    assert_eq!(response.outcome(), Some(outcome));
}

#[test]
fn body_that_is_kept_after_its_end_is_flushed_when_it_is_dropped() {
    let (connection, _) = http2();
    let response = begin_stream(&connection, 1);
    response.end_and_keep();
    accept(&connection, &headers(1, true));
    flush(&connection);
    assert_eq!(response.outcome(), None);
    response.drop_ended();
    assert_eq!(response.outcome().unwrap().delivery, Delivery::Flushed);
}

#[test]
fn http1_response_without_progress_is_given_up() {
    let (connection, counters) = http1();
    let [flushing, open] = std::array::from_fn(|_| begin(&connection, Version::HTTP_11));
    flushing.end();
    assert!(connection.begin_flush());
    connection.give_up_stalled(1000);
    connection.give_up_stalled(10_000);
    assert_eq!(outcomes([&flushing, &open]), [None; 2], "the connection makes progress");
    connection.give_up_stalled(10_001);
    assert_eq!(outcomes([&flushing, &open]), [Some(Stalled), None]);

    open.end();
    assert!(connection.has_open() && connection.begin_flush());
    connection.end_flush();
    assert_eq!(outcomes([&flushing, &open]), [Some(Stalled), Some(FLUSHED)]);
    assert!(!connection.has_open());
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.stalled) = (1, 1)));
}

#[test]
fn tunnel_is_flushed_with_its_head() {
    let (connection, _) = http2();
    let response = begin_stream(&connection, 1);
    response.set_head(true);
    flush(&connection);
    assert_eq!(response.flush_outcome(), None);
    accept(&connection, &[headers(1, false), data(1, 9, false)].concat());
    flush(&connection);
    assert_eq!(response.flush_outcome(), Some(flushed(0)));
}

/// Takes the connection's lock when it is dropped, and counts the drops.
struct Reentrant(Arc<Connection>, Arc<StdMutex<u32>>);

impl Drop for Reentrant {
    fn drop(&mut self) {
        self.0.has_open_body();
        *self.1.lock().unwrap() += 1;
    }
}

#[test]
fn waiters_are_completed_and_dropped_without_the_lock() {
    let events: [fn(&Connection); 6] = [
        |connection| {
            accept(connection, &headers(1, true));
            flush(connection);
        },
        |connection| accept(connection, &reset(1, CANCEL)),
        |connection| connection.reset_stream(StreamId::new(1)),
        |connection| accept(connection, &data(0, 1, false)),
        Connection::give_up,
        Connection::lose,
    ];
    for event in events {
        let (connection, _) = http2();
        let drops = Arc::new(StdMutex::new(0));
        let response = begin_stream(&connection, 1);
        response.keep(Reentrant(connection.clone(), drops.clone()));
        // The connection has the last reference to the exchange.
        drop(response);
        event(&connection);
        assert_eq!(*drops.lock().unwrap(), 1);
    }
}
