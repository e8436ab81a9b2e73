//! Kept-alive HTTP/1.1 connections to one server.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore};

use crate::latency::BoxError;

type Connection = http1::SendRequest<Full<Bytes>>;

/// What is asked for again and again.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) path: String,
    /// It is a POST if there is one.
    pub(crate) body: Option<Bytes>,
}

impl Order {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { path: path.into(), body: None }
    }
}

/// An answer, complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Any 2xx.
    Success,
    /// The server says that the request stood in its queue for too long.
    Expired,
    Other(StatusCode),
}

impl Answer {
    /// By the reason that the `Problem` strategy of this crate gives; others may give it too.
    fn of(status: StatusCode, body: &[u8]) -> Self {
        const EXPIRED: &[u8] = br#""reason":"expired""#;
        if status.is_success() {
            Self::Success
        } else if body.windows(EXPIRED.len()).any(|part| part == EXPIRED) {
            Self::Expired
        } else {
            Self::Other(status)
        }
    }
}

/// Sends each request over an idle connection, or a new one when none is idle, as many browsers would.
///
/// At the bound of open connections a request waits here; its latency counts from its intended start all the same.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    /// The most recently used one is last and goes first.
    idle: Mutex<Vec<Connection>>,
    open: Semaphore,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, max_connections: usize) -> Self {
        Self { address, idle: Mutex::default(), open: Semaphore::new(max_connections) }
    }

    /// Returns when the whole answer has been read.
    pub(crate) async fn send(&self, order: &Order) -> Result<Answer, BoxError> {
        let _permit = self.open.acquire().await?;
        let mut connection = match self.take_idle().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request = match &order.body {
            None => Request::get(&order.path),
            Some(_) => Request::post(&order.path).header("content-type", "text/plain"),
        };
        let body = order.body.clone().unwrap_or_default();
        let request = request.header("host", self.address.to_string()).body(Full::new(body))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        self.lock().push(connection);
        Ok(Answer::of(status, &body))
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.lock().pop()?;
            if connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, BoxError> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
        // An error of the driver also reaches the request that it broke.
        tokio::spawn(async move { drop(driver.await) });
        Ok(connection)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
