use super::*;
use crate::flush::{
    generated::{data, frame, headers, reset},
    scripted::{FLUSHED, Heard, connection, flushed, stats},
};
use std::{io::IoSlice, sync::Mutex as StdMutex};

const CANCEL: u32 = 8;
const NO_ERROR: u32 = 0;

fn http1() -> (Arc<Connection>, Arc<Counters>) {
    let (connection, counters) = connection();
    connection.decided(Protocol::Http1);
    (connection, counters)
}

fn http2() -> (Arc<Connection>, Arc<Counters>) {
    let (connection, counters) = connection();
    connection.decided(Protocol::Http2);
    (connection, counters)
}

fn flush(connection: &Connection) {
    let flush = connection.before_flush();
    connection.flushed(flush);
}

fn accept(connection: &Connection, bytes: &[u8]) {
    connection.accepted(&[IoSlice::new(bytes)], bytes.len());
}

/// A stream that was opened and is being answered.
fn begun(connection: &Connection, stream: u32) -> Arc<Heard> {
    connection.opened(StreamId::new(stream));
    let taken = connection.take_stream();
    assert_eq!(taken, Some(StreamId::new(stream)));
    let response = Arc::new(Heard::default());
    assert!(connection.begin(Version::HTTP_2, taken, &response));
    response
}

#[test]
fn on_http1_only_a_flush_that_was_called_after_the_end_of_the_body_counts() {
    let (connection, counters) = http1();
    let response = Arc::new(Heard::default());
    assert!(connection.begin(Version::HTTP_11, connection.take_stream(), &response));

    let begun_before = connection.before_flush();
    connection.await_flush(response.clone());
    connection.flushed(begun_before);
    assert_eq!(response.verdicts(), []);

    flush(&connection);
    flush(&connection);
    connection.lost();
    assert_eq!(response.verdicts(), [FLUSHED], "once");
    assert_eq!(counters.stats(), stats(|stats| stats.flushed = 1));
}

#[test]
fn one_flush_is_enough_for_pipelined_responses_that_all_ended_before_it() {
    let (connection, _) = http1();
    let responses: [Arc<Heard>; 3] = Default::default();
    connection.await_flush(responses[0].clone());
    connection.await_flush(responses[1].clone());
    let amid = connection.before_flush();
    connection.await_flush(responses[2].clone());
    connection.flushed(amid);
    assert_eq!(responses.each_ref().map(|response| response.verdicts()), [vec![FLUSHED], vec![FLUSHED], vec![]]);
    flush(&connection);
    assert_eq!(responses[2].verdicts(), [FLUSHED]);
}

#[test]
fn responses_over_the_limit_are_only_handed_over() {
    let (connection, counters) = http1();
    let responses: Vec<Arc<Heard>> = (0..=MAX_WAITING).map(|_| Arc::default()).collect();
    for response in &responses {
        connection.await_flush(response.clone());
    }
    let (over, within) = responses.split_last().unwrap();
    assert_eq!(over.verdicts(), [Verdict::Unsure]);
    flush(&connection);
    assert!(within.iter().all(|response| response.verdicts() == [FLUSHED]));
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.gave_up) = (MAX_WAITING as u64, 1)));
}

#[test]
fn a_flush_that_nobody_waits_for_takes_no_lock() {
    for (connection, _) in [http1(), http2()] {
        let _held = lock(&connection.state);
        flush(&connection);
    }
}

#[test]
fn on_http1_bytes_are_not_looked_at() {
    let (connection, _) = http1();
    let _held = lock(&connection.state);
    accept(&connection, b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(connection.take_stream(), None);
}

#[test]
fn a_lost_connection_loses_who_waits_and_who_comes_later() {
    let (connection, counters) = http1();
    let responses: [Arc<Heard>; 2] = Default::default();
    connection.await_flush(responses[0].clone());
    connection.lost();
    connection.lost();
    connection.await_flush(responses[1].clone());
    flush(&connection);
    assert_eq!(responses.map(|response| response.verdicts()), [[Verdict::Lost], [Verdict::Lost]]);

    let (connection, http2) = self::http2();
    let open = begun(&connection, 1);
    connection.opened(StreamId::new(3));
    let taken = connection.take_stream();
    connection.lost();
    let late = Arc::new(Heard::default());
    assert!(connection.begin(Version::HTTP_2, taken, &late));
    assert_eq!((open.verdicts(), late.verdicts()), (vec![Verdict::Lost], vec![Verdict::Lost]));
    connection.opened(StreamId::new(5));
    assert!(!lock(&connection.state).outbound.follows(StreamId::new(5)));
    assert_eq!((counters.stats(), http2.stats()), (stats(|stats| stats.lost = 2), stats(|stats| stats.lost = 2)));
}

#[test]
fn on_http2_the_flush_behind_the_accepted_end_counts() {
    let (connection, counters) = http2();
    let (one, three) = (begun(&connection, 1), begun(&connection, 3));
    accept(&connection, &[headers(1, false), data(1, 500, false), headers(3, false), data(3, 7, true)].concat());
    assert_eq!(three.verdicts(), []);
    flush(&connection);
    assert_eq!((one.verdicts(), three.verdicts()), (vec![], vec![flushed(7)]));
    accept(&connection, &data(1, 500, true));
    flush(&connection);
    assert_eq!(one.verdicts(), [flushed(1000)]);
    assert_eq!(counters.stats(), stats(|stats| stats.flushed = 2));
}

#[test]
fn what_h2_sends_before_the_preface_is_read_belongs_to_its_frames() {
    let (connection, _) = connection();
    let settings = frame(4, 0, 0, &[0; 12]);
    accept(&connection, &settings[..11]);
    connection.decided(Protocol::Http2);
    accept(&connection, &settings[11..]);
    let response = begun(&connection, 1);
    accept(&connection, &headers(1, true));
    flush(&connection);
    assert_eq!(response.verdicts(), [flushed(0)]);
}

#[test]
fn a_reset_before_the_flush_loses_the_response_and_after_it_changes_nothing() {
    let (connection, counters) = http2();
    let ended = begun(&connection, 1);
    accept(&connection, &headers(1, true));
    connection.reset(StreamId::new(1));
    flush(&connection);
    assert_eq!(ended.verdicts(), [Verdict::Lost], "its client does not have it");

    let told = begun(&connection, 3);
    accept(&connection, &headers(3, true));
    flush(&connection);
    connection.reset(StreamId::new(3));
    accept(&connection, &reset(3, CANCEL));
    assert_eq!(told.verdicts(), [flushed(0)]);

    let sent = begun(&connection, 5);
    accept(&connection, &[headers(5, false), reset(5, CANCEL)].concat());
    assert_eq!(sent.verdicts(), [Verdict::Lost], "at once");

    let complete = begun(&connection, 7);
    accept(&connection, &[headers(7, true), reset(7, NO_ERROR)].concat());
    flush(&connection);
    assert_eq!(complete.verdicts(), [flushed(0)], "the client is only asked to send no more");
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.lost) = (2, 2)));
}

#[test]
fn a_response_to_a_stream_that_is_reset_already_is_lost_at_once() {
    let (connection, _) = http2();
    connection.opened(StreamId::new(1));
    let stream = connection.take_stream();
    connection.reset(StreamId::new(1));
    let response = Arc::new(Heard::default());
    assert!(connection.begin(Version::HTTP_2, stream, &response));
    assert_eq!(response.verdicts(), [Verdict::Lost]);
}

#[test]
fn a_response_without_a_stream_is_unsure_at_once() {
    let (connection, counters) = http2();
    let response = Arc::new(Heard::default());
    assert!(!connection.begin(Version::HTTP_2, None, &response));
    assert_eq!(response.verdicts(), [Verdict::Unsure]);
    assert_eq!(counters.stats(), stats(|stats| stats.unmapped = 1));
}

#[test]
fn a_request_in_another_protocol_than_the_bytes_is_unsure() {
    for (speak, version) in [
        (http1 as fn() -> _, Version::HTTP_2),
        (http2, Version::HTTP_11),
        (connection, Version::HTTP_11),
        (connection, Version::HTTP_2),
    ] {
        let (connection, counters) = speak();
        let response = Arc::new(Heard::default());
        assert!(!connection.begin(version, Some(StreamId::new(1)), &response));
        assert_eq!(response.verdicts(), [Verdict::Unsure]);
        assert_eq!(counters.stats(), stats(|stats| stats.unmapped = 1));
    }
}

#[test]
fn malformed_outbound_bytes_end_tracking_once() {
    let (connection, counters) = http2();
    let (ended, open) = (begun(&connection, 1), begun(&connection, 3));
    accept(&connection, &headers(1, true));
    for _ in 0..2 {
        accept(&connection, &data(0, 1, false));
    }
    flush(&connection);
    connection.lost();
    assert_eq!((ended.verdicts(), open.verdicts()), (vec![Verdict::Unsure], vec![Verdict::Unsure]));

    let late = Arc::new(Heard::default());
    connection.opened(StreamId::new(5));
    assert!(!lock(&connection.state).outbound.follows(StreamId::new(5)));
    assert!(!connection.begin(Version::HTTP_2, connection.take_stream(), &late));
    assert_eq!(late.verdicts(), [Verdict::Unsure]);
    assert_eq!(counters.stats(), stats(|stats| stats.gave_up = 3));
}

#[test]
fn mapped_streams_are_followed_after_mapping_stopped() {
    let (connection, counters) = http2();
    let [flushed_one, reset_one, open] = [1, 3, 5].map(|stream| begun(&connection, stream));
    accept(&connection, &headers(1, false));
    connection.stop_mapping();
    connection.stop_mapping();
    assert_eq!(flushed_one.verdicts(), []);
    accept(&connection, &[data(1, 500, true), reset(3, CANCEL)].concat());
    flush(&connection);
    assert_eq!((flushed_one.verdicts(), reset_one.verdicts()), (vec![flushed(500)], vec![Verdict::Lost]));

    let late = Arc::new(Heard::default());
    connection.opened(StreamId::new(7));
    assert!(!lock(&connection.state).outbound.follows(StreamId::new(7)));
    assert!(!connection.begin(Version::HTTP_2, connection.take_stream(), &late));
    assert_eq!(late.verdicts(), [Verdict::Unsure]);
    connection.lost();
    assert_eq!(open.verdicts(), [Verdict::Lost]);
    assert_eq!(counters.stats(), stats(|stats| (stats.flushed, stats.lost, stats.gave_up) = (1, 2, 1)));
}

#[test]
fn resets_before_the_doubt_are_sure() {
    let (connection, _) = http2();
    let (one, three) = (begun(&connection, 1), begun(&connection, 3));
    accept(&connection, &[reset(1, CANCEL), data(0, 1, false)].concat());
    assert_eq!((one.verdicts(), three.verdicts()), (vec![Verdict::Lost], vec![Verdict::Unsure]));
}

#[test]
fn a_stream_that_nobody_took_is_undelivered_and_taken_by_nobody_later() {
    let (connection, counters) = http2();
    connection.opened(StreamId::new(1));
    assert!(connection.is_untaken());
    connection.take_back();
    connection.take_back();
    assert!(!connection.is_untaken());
    assert_eq!(connection.take_stream(), None);
    assert!(!lock(&connection.state).outbound.follows(StreamId::new(1)));
    assert_eq!(counters.stats(), stats(|stats| stats.undelivered = 1));
}

#[test]
fn a_tunnel_is_flushed_with_its_head() {
    let (connection, _) = http2();
    let response = begun(&connection, 1);
    connection.ends_with_head(StreamId::new(1));
    flush(&connection);
    assert_eq!(response.verdicts(), []);
    accept(&connection, &[headers(1, false), data(1, 9, false)].concat());
    flush(&connection);
    assert_eq!(response.verdicts(), [flushed(0)]);
}

#[test]
fn mismatches_are_counted() {
    let (connection, counters) = http2();
    connection.mismatched();
    assert_eq!(counters.stats(), stats(|stats| stats.mismatched = 1));
}

/// Calls back into its connection when it is told, and when it is dropped.
struct Reentrant(Arc<Connection>, Arc<StdMutex<u32>>);

impl Response for Reentrant {
    fn told(self: Arc<Self>, _: Verdict) {
        self.0.take_stream();
        *self.1.lock().unwrap() += 1;
    }
}

impl Drop for Reentrant {
    fn drop(&mut self) {
        self.0.take_stream();
        *self.1.lock().unwrap() += 10;
    }
}

#[test]
fn nobody_is_told_or_dropped_under_the_lock() {
    let events: [fn(&Connection); 5] = [
        |connection| {
            accept(connection, &headers(1, true));
            flush(connection);
        },
        |connection| accept(connection, &reset(1, CANCEL)),
        |connection| connection.reset(StreamId::new(1)),
        |connection| accept(connection, &data(0, 1, false)),
        Connection::lost,
    ];
    for (at, event) in events.into_iter().enumerate() {
        let (connection, _) = http2();
        let count = Arc::new(StdMutex::new(0));
        connection.opened(StreamId::new(1));
        let stream = connection.take_stream();
        connection.begin(Version::HTTP_2, stream, &Arc::new(Reentrant(connection.clone(), count.clone())));
        event(&connection);
        assert_eq!(*count.lock().unwrap(), if at == 5 { 10 } else { 11 }, "event {at}");
    }
}
