//! Frames on the socket between a pool and a worker process.
//!
//! A frame is its length (`u32`, little-endian), a header, and for some headers a payload: the
//! input or the result of a job. Headers are encoded by postcard. Payloads are MessagePack, which
//! describes itself, because values of the user may skip fields. A process reads only frames that
//! were written by the same executable (see [`Fingerprint`]), so the format has no versions of its
//! own.

use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    time::Duration,
};

use postcard::ser_flavors::Flavor;
use rmp_serde::{Deserializer, Serializer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    depth::{MAX_DEPTH, is_shallow},
    os,
};

/// Bytes of the length in front of a frame.
const PREFIX: usize = size_of::<u32>();
/// Bytes that one read asks for. Most frames are smaller.
const READ_SIZE: usize = 16 * 1024;
/// Capacity that a buffer keeps between two jobs.
const KEPT_CAPACITY: usize = 256 * 1024;
/// Longest message of a panic or an error that a process sends. Longer ones are cut.
pub(super) const MAX_MESSAGE: usize = 4096;
/// Upper bound of what a header can add to a frame: two messages and a kind.
const MAX_HEADER: usize = 4 * MAX_MESSAGE;

/// From the pool to a process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request<'a> {
    /// Run a job. The payload is its input.
    Run { job: u64, kind: &'a str, remaining: Option<Duration>, trace: Option<&'a str> },
    /// The job got a timeout after its request was encoded, or a shorter one. May precede `Run`.
    Timeout { job: u64, remaining: Duration },
    /// The result of the job is no longer wanted.
    Cancel { job: u64 },
}

/// From a process to the pool.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply<'a> {
    /// The process can run jobs of these kinds.
    Ready {
        executable: Fingerprint,
        #[serde(borrow)]
        kinds: Vec<&'a str>,
    },
    /// The process has built a pool of its own before it called `init`.
    NotInitialized,
    /// The next thing that the process does is to run the code of the job.
    Started { job: u64 },
    /// The work of the job has reported progress.
    Progress { job: u64, value: f64, message: &'a str },
    /// A thread of the process panics.
    Panicking { message: &'a str, location: &'a str },
    /// The job has ended.
    Done {
        job: u64,
        #[serde(borrow)]
        outcome: Outcome<'a>,
    },
}

/// How a job ended in its process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome<'a> {
    /// The work returned `Ok`. The payload is the output.
    Output,
    /// The work returned `Err`. The payload is the error.
    Error,
    /// The work panicked, as the last `Panicking` has reported.
    Panicked,
    /// The input could not be decoded.
    InvalidInput { reason: &'a str },
    /// The result could not be encoded.
    InvalidResult { reason: &'a str },
    /// The encoded result is longer than a frame may be.
    ResultTooLarge { len: u64 },
}

/// Identifies an executable file. A pool talks only to processes that run the file which it has
/// started, because the code of a job must be that of its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    version: String,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Fingerprint {
    pub(super) fn of(executable: &Path) -> io::Result<Self> {
        let file = fs::metadata(executable)?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }
}

/// A payload that cannot be sent.
#[derive(Debug)]
pub(super) enum EncodeError {
    /// The payload has this length, which is over the limit.
    TooLarge(u64),
    Invalid(String),
}

/// Encodes a frame without payload.
pub(super) fn encode(header: &impl Serialize) -> Vec<u8> {
    let mut frame = Bounded::new(MAX_HEADER);
    // The headers of this module can be encoded and are short: texts are cut by their senders.
    let is_encoded = postcard::serialize_with_flavor(header, &mut frame).is_ok();
    debug_assert!(is_encoded && !frame.is_cut(), "a header is short and can be encoded");
    frame.finish()
}

/// Encodes a frame with a payload of at most `max` bytes.
pub(super) fn encode_with(
    header: &impl Serialize,
    payload: &impl Serialize,
    max: usize,
) -> Result<Vec<u8>, EncodeError> {
    let mut frame = Bounded::new(MAX_HEADER);
    postcard::serialize_with_flavor(header, &mut frame).map_err(|error| EncodeError::Invalid(error.to_string()))?;
    let header = frame.len;
    frame.max = frame.bytes.len().saturating_add(max);
    // Like JSON, so that the attributes of serde have the same effect: structs have the names of
    // their fields, and addresses and times are texts.
    let mut serializer = Serializer::new(&mut frame).with_struct_map().with_human_readable();
    payload.serialize(&mut serializer).map_err(|error| EncodeError::Invalid(error.to_string()))?;
    if frame.is_cut() {
        return Err(EncodeError::TooLarge(frame.len - header));
    }
    Ok(frame.finish())
}

/// Splits a frame into its header and its payload.
pub(super) fn decode<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<(T, &'a [u8]), postcard::Error> {
    postcard::take_from_bytes(frame)
}

/// Decodes a payload.
pub(super) fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    if !is_shallow(payload) {
        return Err(format!("it has more than {MAX_DEPTH} nested arrays, objects or enums"));
    }
    T::deserialize(&mut Deserializer::from_read_ref(payload).with_human_readable()).map_err(|error| error.to_string())
}

/// Returns the longest prefix of a text that a header can contain.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary_compat(MAX_MESSAGE)]
}

trait FloorCharBoundary {
    fn floor_char_boundary_compat(&self, index: usize) -> usize;
}

impl FloorCharBoundary for str {
    /// `str::floor_char_boundary`, which needs a newer Rust.
    fn floor_char_boundary_compat(&self, index: usize) -> usize {
        (0..=index.min(self.len())).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// A frame that is being encoded. Bytes beyond `max` are counted and not kept, so that a huge
/// result is not held in memory twice, unless serde buffers it (`flatten`).
struct Bounded {
    bytes: Vec<u8>,
    /// Length of the encoded data, kept or not, without the prefix.
    len: u64,
    /// Maximum length of `bytes`.
    max: usize,
}

impl Bounded {
    fn new(max: usize) -> Self {
        Self { bytes: vec![0; PREFIX], len: 0, max: PREFIX + max }
    }

    /// Called for each byte of a `Vec<u8>`, from the code of the work's crate.
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        let room = self.max.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn is_cut(&self) -> bool {
        self.len != (self.bytes.len() - PREFIX) as u64
    }

    /// Writes the length. Limits are below 4 GiB, see [`max_frame`].
    fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len() - PREFIX).unwrap_or(u32::MAX);
        self.bytes[..PREFIX].copy_from_slice(&len.to_le_bytes());
        self.bytes
    }
}

impl Write for &mut Bounded {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Flavor for &mut Bounded {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.len += 1;
        if self.bytes.len() < self.max {
            self.bytes.push(byte);
        }
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.push(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Returns the maximum length of a frame whose payload has at most `max_payload` bytes.
pub(super) fn max_frame(max_payload: usize) -> usize {
    max_payload.saturating_add(MAX_HEADER)
}

/// Splits a stream of bytes into frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    /// Bytes that were read and not returned yet, from `start` on. At most one frame and one read.
    buffer: Vec<u8>,
    start: usize,
    max: usize,
}

/// What [`FrameReader::read`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There are new bytes.
    Read,
    /// A read would block.
    Blocked,
    /// The other side has closed the socket.
    Closed,
}

/// A frame that is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameTooLarge(pub(super) usize);

impl FrameReader {
    pub(super) fn new(max: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, max }
    }

    /// Reads once. To be called only after [`next`](Self::next) has returned `None`, so that the
    /// buffer is bounded.
    pub(super) fn read(&mut self, mut socket: impl Read) -> Progress {
        self.buffer.drain(..self.start);
        self.start = 0;
        let filled = self.buffer.len();
        // The rest of a long frame, or as much as most frames need. Memory is allocated as bytes
        // arrive: a length alone allocates nothing.
        let missing = self.expected().map_or(READ_SIZE, |frame| frame.saturating_sub(filled));
        self.buffer.resize(filled + missing.clamp(READ_SIZE, KEPT_CAPACITY), 0);
        let read = loop {
            match socket.read(&mut self.buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Progress::Closed,
            Ok(_) => Progress::Read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Blocked,
            Err(_) => Progress::Closed, // reset by a process that was killed
        }
    }

    /// Returns the next complete frame.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, FrameTooLarge> {
        let Some(end) = self.expected() else { return Ok(None) };
        if end - PREFIX > self.max {
            return Err(FrameTooLarge(end - PREFIX));
        }
        let frame = self.start + PREFIX..self.start + end;
        if self.buffer.len() < frame.end {
            return Ok(None);
        }
        self.start = frame.end;
        Ok(Some(&self.buffer[frame]))
    }

    /// Returns `true` if there is no part of a frame.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// Releases the memory that a long frame has used.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.buffer.capacity() > KEPT_CAPACITY {
            *self = Self::new(self.max);
        }
    }

    /// Returns the length of the frame that the buffer begins with, including the prefix.
    fn expected(&self) -> Option<usize> {
        let prefix = self.buffer[self.start..].first_chunk::<PREFIX>()?;
        usize::try_from(u32::from_le_bytes(*prefix)).ok()?.checked_add(PREFIX)
    }
}

/// Bytes that wait until a socket accepts them.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Writes as much as the socket accepts.
    pub(super) fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        while !self.is_empty() {
            match os::send(&socket, &self.bytes[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        *self = Self::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns at most `step` bytes per read.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(self.0.len()).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_they_are_split(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..6),
            step in 1_usize..700,
        ) {
            let mut stream = Vec::new();
            for (job, payload) in payloads.iter().enumerate() {
                let header = Request::Run { job: job as u64, kind: "kind", remaining: None, trace: None };
                stream.extend(encode_with(&header, payload, 1024).unwrap());
            }
            let (mut reader, mut socket, mut received) = (FrameReader::new(max_frame(1024)), Drip(&stream, step), vec![]);
            loop {
                while let Some(frame) = reader.next().unwrap() {
                    let (header, payload) = decode::<Request<'_>>(frame).unwrap();
                    let Request::Run { job, .. } = header else { panic!("{header:?}") };
                    prop_assert_eq!(job, received.len() as u64);
                    received.push(decode_payload::<Vec<u8>>(payload).unwrap());
                }
                if reader.read(&mut socket) == Progress::Closed {
                    break;
                }
            }
            prop_assert_eq!(received, payloads);
        }

        #[test]
        fn random_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = FrameReader::new(64);
            let mut socket = &bytes[..];
            while reader.read(&mut socket) == Progress::Read {
                while let Ok(Some(frame)) = reader.next() {
                    let _ = decode::<Reply<'_>>(frame);
                }
            }
            prop_assert!(reader.buffer.len() <= bytes.len());
        }
    }

    #[test]
    fn payload_over_the_limit_reports_its_length() {
        let header = Request::Cancel { job: 1 };
        let fits = encode_with(&header, &vec![7_u8; 97], 100).unwrap();
        assert_eq!(fits.len() - PREFIX, usize::try_from(u32::from_le_bytes(*fits.first_chunk().unwrap())).unwrap());
        let error = encode_with(&header, &vec![7_u8; 1_000_000], 100).unwrap_err();
        assert!(matches!(error, EncodeError::TooLarge(1_000_005)), "{error:?}");
        // A text is copied at once, not byte by byte.
        assert_eq!(encode_with(&header, &"7".repeat(98), 100).unwrap().len(), fits.len());
        let error = encode_with(&header, &"7".repeat(1_000_000), 100).unwrap_err();
        assert!(matches!(error, EncodeError::TooLarge(1_000_005)), "{error:?}");
    }

    #[test]
    fn frame_over_the_limit_is_an_error_before_it_arrives() {
        let mut reader = FrameReader::new(100);
        assert_eq!(reader.read(&101_u32.to_le_bytes()[..]), Progress::Read);
        assert_eq!(reader.next(), Err(FrameTooLarge(101)));
    }

    #[test]
    fn length_alone_allocates_one_read() {
        let mut reader = FrameReader::new(usize::MAX);
        assert_eq!(reader.read(&u32::MAX.to_le_bytes()[..]), Progress::Read);
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.buffer.capacity() <= 2 * READ_SIZE);
    }

    #[test]
    fn text_is_cut_between_characters() {
        let text = "ä".repeat(MAX_MESSAGE);
        assert_eq!(cut(&text).len(), MAX_MESSAGE);
        assert_eq!(cut(&format!("a{text}")).len(), MAX_MESSAGE - 1);
        assert_eq!(cut("short"), "short");
    }
}
