use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Site, Wire, site::Connection};

/// An HTTP/1 client that sends and reads only on request.
pub(crate) struct Http1 {
    io: Box<dyn Connection>,
    buffer: BytesMut,
    pub(crate) wire: Arc<Wire>,
}

/// A response, as the client received it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The head, in lower case.
    pub(crate) head: String,
    /// The length of the body.
    pub(crate) body: u64,
    /// The trailers, in lower case.
    pub(crate) trailers: String,
}

impl Http1 {
    pub(crate) async fn connect(site: &Site) -> Self {
        let (io, wire) = site.connect().await;
        Self { io, buffer: BytesMut::new(), wire }
    }

    /// Speaks over a transport that is connected already.
    pub(crate) fn over(io: impl Connection + 'static) -> Self {
        Self { io: Box::new(io), buffer: BytesMut::new(), wire: Arc::new(Wire::new()) }
    }

    /// Opens a connection that is reset when it is dropped.
    pub(crate) async fn connect_to_reset(site: &Site) -> Self {
        let (io, wire) = site.connect_to_reset().await;
        Self { io, buffer: BytesMut::new(), wire }
    }

    pub(crate) async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.io.write_all(text.as_ref()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    pub(crate) async fn send_get(&mut self, path: &str) {
        self.send(get(path)).await;
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send_get(path).await;
        self.answer().await
    }

    /// Reads the next response. Not for `HEAD` requests.
    pub(crate) async fn answer(&mut self) -> Answer {
        let answer = self.head().await;
        self.body_of(answer).await
    }

    /// Reads the head of the next response.
    pub(crate) async fn head(&mut self) -> Answer {
        let head = self.until(b"\r\n\r\n").await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: 0, trailers: String::new() }
    }

    /// Reads the body that belongs to this head.
    pub(crate) async fn body_of(&mut self, mut answer: Answer) -> Answer {
        if matches!(answer.status, 101 | 204 | 304) {
            return answer;
        }
        if answer.head.contains("transfer-encoding: chunked") {
            loop {
                let size = self.until(b"\r\n").await;
                let size = u64::from_str_radix(size.trim(), 16).unwrap();
                if size == 0 {
                    break;
                }
                self.skip(size + 2).await;
                answer.body += size;
            }
            loop {
                let line = self.until(b"\r\n").await;
                if line == "\r\n" {
                    break;
                }
                answer.trailers += &line;
            }
        } else if let Some(length) = header(&answer.head, "content-length") {
            answer.body = length.parse().unwrap();
            self.skip(answer.body).await;
        } else {
            answer.body = self.rest().await;
        }
        answer
    }

    /// Returns the number of bytes until the server closes or resets the connection.
    pub(crate) async fn rest(&mut self) -> u64 {
        let mut bytes = 0;
        loop {
            bytes += self.buffer.len() as u64;
            self.buffer.clear();
            if !self.fill().await {
                return bytes;
            }
        }
    }

    /// Reads exactly `bytes` bytes.
    pub(crate) async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            assert!(self.fill().await, "the connection ended early");
        }
        self.buffer.split_to(bytes).to_vec()
    }

    /// Shuts down the sending side.
    pub(crate) async fn shut_writing(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    async fn skip(&mut self, mut bytes: u64) {
        loop {
            let part = bytes.min(self.buffer.len() as u64);
            self.buffer.advance(usize::try_from(part).unwrap());
            bytes -= part;
            if bytes == 0 {
                return;
            }
            assert!(self.fill().await, "the connection ended early");
        }
    }

    async fn until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let text = self.buffer.split_to(at + end.len());
                return String::from_utf8(text.to_vec()).unwrap().to_ascii_lowercase();
            }
            assert!(self.fill().await, "the connection ended early, after {:?}", self.buffer);
        }
    }

    async fn fill(&mut self) -> bool {
        self.buffer.reserve(64 * 1024);
        self.io.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0)
    }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: site\r\n\r\n")
}

/// Returns the value of a header field.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}
