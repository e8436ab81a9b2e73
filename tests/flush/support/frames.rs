//! HTTP/2 frames for requests that no client library would send, and a parser for the ends of
//! streams.

use std::collections::{HashMap, VecDeque};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

/// Encodes a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

/// Takes the first frame out of `bytes`, once it is complete: its type, flags, stream and payload.
pub(crate) fn take(bytes: &mut VecDeque<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let length = u32::from_be_bytes([0, *bytes.front()?, *bytes.get(1)?, *bytes.get(2)?]) as usize;
    if bytes.len() < HEADER + length {
        return None;
    }
    let header: Vec<u8> = bytes.drain(..HEADER).collect();
    let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
    Some((header[3], header[4], stream, bytes.drain(..length).collect()))
}

/// Returns a SETTINGS frame that sets the initial window of every stream.
pub(crate) fn initial_window(bytes: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&4_u16.to_be_bytes()[..], &bytes.to_be_bytes()].concat())
}

/// Returns a WINDOW_UPDATE frame with the maximum window of the connection.
pub(crate) fn wide_window() -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes())
}

pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// Returns a request without a body.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86]; // :method GET, :scheme http
    block.extend(literal(4, path)); // :path
    block.extend(literal(1, "site")); // :authority
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

/// Returns a request whose body is open.
pub(crate) fn post(stream: u32, path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    block.extend(literal(4, path));
    block.extend(literal(1, "site"));
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// Returns a request without a path, which is malformed (RFC 9113, section 8.3.1) although its
/// frame is valid.
pub(crate) fn malformed(stream: u32) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    block.extend(literal(1, "site"));
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

/// Returns a request with an additional field of `size` bytes.
pub(crate) fn get_with_field(stream: u32, path: &str, size: usize) -> Vec<u8> {
    let mut block = vec![0x82, 0x86];
    block.extend(literal(4, path));
    block.extend(literal(1, "site"));
    let mut parts = Vec::new();
    block.extend([0x00, 1, b'x']);
    block.extend(length(size));
    block.resize(block.len() + size, b'v');
    let mut chunks = block.chunks(16_384).peekable();
    let mut kind = HEADERS;
    while let Some(chunk) = chunks.next() {
        let end_headers = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        let end_stream = if kind == HEADERS { END_STREAM } else { 0 };
        parts.extend(frame(kind, end_stream | end_headers, stream, chunk));
        kind = 9; // CONTINUATION
    }
    parts
}

/// Encodes an HPACK literal without indexing, with an indexed name and without Huffman coding (RFC
/// 7541, section 6.2.2).
fn literal(name: u8, value: &str) -> Vec<u8> {
    let mut field = vec![name];
    field.extend(length(value.len()));
    field.extend(value.as_bytes());
    field
}

/// Encodes an HPACK integer with a prefix of 7 bits (RFC 7541, section 5.1).
fn length(value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).unwrap()];
    }
    let (mut rest, mut bytes) = (value - 127, vec![127]);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// Finds the ends of streams in one direction: the offset after the frame with `END_STREAM`.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    offset: u64,
    header: Vec<u8>,
    payload: usize,
    ends: HashMap<u32, u64>,
}

impl Ends {
    /// Parses bytes, without the preface of the client.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (wanted, in_header) =
                if self.header.len() < HEADER { (HEADER - self.header.len(), true) } else { (self.payload, false) };
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            self.offset += part.len() as u64;
            if in_header {
                self.header.extend(part);
                if self.header.len() == HEADER {
                    self.payload = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]) as usize;
                }
            } else {
                self.payload -= part.len();
            }
            if self.header.len() == HEADER && self.payload == 0 {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        let (kind, flags) = (self.header[3], self.header[4]);
        let stream = u32::from_be_bytes([self.header[5], self.header[6], self.header[7], self.header[8]]);
        self.header.clear();
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            self.ends.entry(stream).or_insert(self.offset);
        }
    }

    pub(crate) fn of(&self, stream: u32) -> Option<u64> {
        self.ends.get(&stream).copied()
    }
}
