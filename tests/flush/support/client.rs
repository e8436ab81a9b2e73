use http::Method;

use super::{Http1, Http2, Site, http2};

/// A client for tests that are the same on both protocols.
pub(crate) enum Client {
    Http1(Http1),
    Http2(Http2),
}

impl Client {
    pub(crate) async fn connect(site: &Site) -> Self {
        if site.stack.is_http2() {
            Self::Http2(Http2::connect(site).await)
        } else {
            Self::Http1(Http1::connect(site).await)
        }
    }

    /// Sends a request and reads the response. Returns its status and the length of its body.
    pub(crate) async fn get(&mut self, path: &str) -> (u16, u64) {
        match self {
            Self::Http1(client) => {
                let answer = client.get(path).await;
                (answer.status, answer.body)
            }
            Self::Http2(client) => {
                let read = client.get(path).await.unwrap();
                (read.head.status().as_u16(), read.body)
            }
        }
    }

    /// Sends a request without reading the response.
    pub(crate) async fn start(&mut self, path: &str) -> Started {
        match self {
            Self::Http1(client) => {
                client.send_get(path).await;
                Started::Http1
            }
            Self::Http2(client) => Started::Http2(client.start(path).await),
        }
    }

    /// Sends a HEAD request, and returns the status.
    pub(crate) async fn head(&mut self, path: &str) -> u16 {
        match self {
            Self::Http1(client) => {
                client.send(format!("HEAD {path} HTTP/1.1\r\nhost: site\r\n\r\n")).await;
                client.head().await.status
            }
            Self::Http2(client) => {
                let response = client.request(Method::HEAD, path, true).await.0;
                response.await.unwrap().status().as_u16()
            }
        }
    }

    /// Reads the response to a started request, and returns the length of its body.
    pub(crate) async fn finish(&mut self, started: Started) -> u64 {
        match (self, started) {
            (Self::Http1(client), Started::Http1) => client.answer().await.body,
            (Self::Http2(_), Started::Http2(response)) => http2::read(response).await.unwrap().body,
            _ => unreachable!("a request of another client"),
        }
    }
}

impl Client {
    /// Reads the head of the response to a started request.
    pub(crate) async fn await_head(&mut self, started: Started) -> Started {
        match (self, started) {
            (Self::Http1(client), started) => {
                client.head().await;
                started
            }
            (_, Started::Http2(response)) => Started::Http2Body(response.await.unwrap().into_body()),
            (_, started) => started,
        }
    }

    /// Closes the connection.
    pub(crate) async fn hang_up(self) {
        match self {
            Self::Http1(client) => drop(client),
            Self::Http2(client) => client.hang_up().await,
        }
    }
}

/// A request that was sent. Its stream is reset when this is dropped.
pub(crate) enum Started {
    Http1,
    Http2(h2::client::ResponseFuture),
    Http2Body(#[expect(dead_code, reason = "kept, so that the stream is not reset")] h2::RecvStream),
}
