//! The client. It counts ends of streams and decodes nothing else, so that it costs little.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::STREAMS;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
/// The length of a request: `:method GET`, `:scheme http`, `:path /`, and `:authority`.
const REQUEST: usize = HEADER + 6;

/// The window of a connection runs out after this number of responses, whose bodies have 5 bytes.
const MAX_RESPONSES: u64 = 400_000_000;

pub(crate) struct Client {
    io: TcpStream,
    /// The identifier of the next stream.
    next: u32,
    requests: Vec<u8>,
    /// The rest of the payload of a frame.
    skip: usize,
    header: Vec<u8>,
    buffer: Box<[u8]>,
    responses: u64,
}

impl Client {
    pub(crate) async fn connect(address: std::net::SocketAddr) -> io::Result<Self> {
        let mut io = TcpStream::connect(address).await?;
        io.set_nodelay(true)?;
        let window = [&[0, 0, 4, 8, 0, 0, 0, 0, 0][..], &(0x7fff_ffff_u32 - 65_535).to_be_bytes()].concat();
        io.write_all(&[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &window].concat()).await?;
        let buffer = vec![0; 1 << 16].into_boxed_slice();
        Ok(Self { io, next: 1, requests: Vec::new(), skip: 0, header: Vec::new(), buffer, responses: 0 })
    }

    /// Keeps [`STREAMS`] requests in flight until `goes_on` returns `false`, and then waits for their
    /// responses. Returns the number of responses.
    pub(crate) async fn run(&mut self, goes_on: impl Fn() -> bool) -> io::Result<u64> {
        let (mut open, mut ended) = (0, 0);
        self.send(STREAMS).await?;
        open += STREAMS;
        while open > 0 {
            let count = self.read().await?;
            (open, ended) = (open - count, ended + count as u64);
            if goes_on() && self.responses < MAX_RESPONSES {
                self.send(count).await?;
                open += count;
            }
        }
        Ok(ended)
    }

    async fn send(&mut self, count: usize) -> io::Result<()> {
        self.requests.clear();
        for _ in 0..count {
            self.requests.extend([0, 0, (REQUEST - HEADER) as u8, 1, 0x5]);
            self.requests.extend(self.next.to_be_bytes());
            self.requests.extend([0x82, 0x86, 0x84, 0x01, 1, b'a']);
            self.next += 2;
        }
        self.io.write_all(&self.requests).await
    }

    /// Reads once, and returns the number of streams that ended.
    async fn read(&mut self) -> io::Result<usize> {
        let read = self.io.read(&mut self.buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut ended) = (0, 0);
        while at < read {
            let skipped = self.skip.min(read - at);
            (self.skip, at) = (self.skip - skipped, at + skipped);
            let missing = (HEADER - self.header.len()).min(read - at);
            self.header.extend(&self.buffer[at..at + missing]);
            at += missing;
            if let [high, middle, low, kind, flags, ..] = self.header[..] {
                if self.header.len() == HEADER {
                    self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                    ended += usize::from(kind <= 1 && flags & 1 != 0);
                    if matches!(kind, 3 | 7) {
                        return Err(io::Error::other("the server refuses a request"));
                    }
                    self.header.clear();
                }
            }
        }
        self.responses += ended as u64;
        Ok(ended)
    }
}
