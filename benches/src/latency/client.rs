//! Kept-alive HTTP/1.1 connections to one server.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore};

use crate::BoxError;

type Connection = http1::SendRequest<Full<Bytes>>;

/// A request that is sent repeatedly.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    /// If present, the request is a POST.
    pub(super) body: Option<Bytes>,
}

impl Request {
    pub(super) fn get(path: &str) -> Self {
        Self { path: path.to_owned(), body: None }
    }
}

/// A complete response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// Any 2xx.
    Success,
    /// Any other status.
    Other(StatusCode),
}

/// Sends each request on an idle connection, or on a new one if none is idle, like a large number
/// of browsers.
///
/// If all connections are in use, a request waits here. Its latency counts from its intended start
/// nevertheless.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    /// The most recently used connection is last and is used first.
    idle: Mutex<Vec<Connection>>,
    open: Semaphore,
}

impl Client {
    pub(super) fn new(address: SocketAddr, max_connections: usize) -> Self {
        Self { address, idle: Mutex::default(), open: Semaphore::new(max_connections) }
    }

    /// Returns when the whole response has been read.
    pub(super) async fn send(&self, request: &Request) -> Result<Reply, BoxError> {
        let _permit = self.open.acquire().await?;
        let mut connection = match self.take_idle().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let builder = match &request.body {
            None => hyper::Request::get(&request.path),
            Some(_) => hyper::Request::post(&request.path).header("content-type", "text/plain"),
        };
        let body = Full::new(request.body.clone().unwrap_or_default());
        let response = connection.send_request(builder.header("host", self.address.to_string()).body(body)?).await?;
        let status = response.status();
        response.into_body().collect().await?;
        self.idle().push(connection);
        Ok(if status.is_success() { Reply::Success } else { Reply::Other(status) })
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle().pop()?;
            if connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, BoxError> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
        // An error of the driver also reaches the request that it affects.
        tokio::spawn(async move { drop(driver.await) });
        Ok(connection)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
