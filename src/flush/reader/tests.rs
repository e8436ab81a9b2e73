use std::{sync::Arc, task::Waker};

use super::*;
use crate::flush::{
    mark::FIELD_LENGTH,
    tests::{
        generated::{data, headers},
        scripted::{Read, Script, connection},
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads once, and returns the number of bytes delivered.
fn read(reader: &mut Reader, connection: &Arc<Connection>, script: &mut Script, room: usize) -> Option<usize> {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut delivered = 0;
    let put = |bytes: &[u8]| delivered += bytes.len();
    let outcome = reader.poll_read(connection, cx, room, put, |_, into| {
        let Some(Read::Bytes(mut bytes)) = script.reads.pop_front() else { return Poll::Pending };
        script.rooms.push(into.len());
        let behind = bytes.split_off(bytes.len().min(into.len()));
        into[..bytes.len()].copy_from_slice(&bytes);
        if !behind.is_empty() {
            script.reads.push_front(Read::Bytes(behind));
        }
        Poll::Ready(Ok(bytes.len()))
    });
    match outcome {
        Poll::Ready(read) => {
            read.unwrap();
            Some(delivered)
        }
        Poll::Pending => None,
    }
}

#[test]
fn reader_reads_at_most_its_buffer_ahead() {
    let (connection, _) = connection();
    let (mut reader, mut script) = (Reader::default(), Script::default());
    let mut bytes = PREFACE.to_vec();
    (0..9_000).for_each(|stream| bytes.extend(headers(2 * stream + 1, true)));
    let marked = bytes.len() + 9_000 * FIELD_LENGTH;
    script.reads.push_back(Read::Bytes(bytes));

    let mut delivered = 0;
    while delivered < marked {
        delivered += read(&mut reader, &connection, &mut script, 1000).unwrap();
        assert!(reader.buffer.len() <= MAX_BUFFER && reader.unread.len() < MAX_BUFFER);
    }
    assert_eq!((delivered, read(&mut reader, &connection, &mut script, 1000)), (marked, None));
    assert_eq!(script.rooms.iter().max(), Some(&MAX_BUFFER));
}

#[test]
fn undecided_reader_reads_at_most_the_caller_s_room() {
    let (connection, _) = connection();
    let (mut reader, mut script) = (Reader::default(), Script::default());
    script.reads.push_back(Read::Bytes([PREFACE, &headers(1, true), &data(1, 30_000, true)].concat()));
    for room in [5, 19] {
        assert_eq!(read(&mut reader, &connection, &mut script, room), Some(room));
        assert!(reader.unread.is_empty());
    }
    assert_eq!(script.rooms, [5, 19]);
    assert_eq!(reader.buffer.len(), 19, "hyper-util and h2 read only the preface first");

    assert_eq!(connection.protocol(), connection::Protocol::Http2);
    assert_eq!(read(&mut reader, &connection, &mut script, 3), Some(3));
    assert_eq!(reader.buffer.len(), MAX_BUFFER);
}

#[test]
fn buffer_is_freed_on_http1() {
    let (connection, _) = connection();
    let (mut reader, mut script) = (Reader::default(), Script::default());
    assert!(!reader.is_done(&connection));
    for bytes in [&b"P"[..], b"OST / HTTP/1.1\r\n"] {
        script.reads.push_back(Read::Bytes(bytes.to_vec()));
        assert!(!reader.is_done(&connection));
        assert_eq!(read(&mut reader, &connection, &mut script, 8192), Some(bytes.len()));
    }
    assert!(reader.is_done(&connection));
    assert_eq!(reader.buffer.len(), 0);
}
