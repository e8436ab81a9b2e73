//! Kept-alive HTTP/1.1 connections to one server.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore};

use crate::BoxError;

type Connection = http1::SendRequest<Empty<Bytes>>;

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
    pub(crate) async fn get(&self, path: &str) -> Result<StatusCode, BoxError> {
        let _permit = self.open.acquire().await?;
        let mut connection = match self.take_idle().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request = Request::get(path).header("host", "localhost").body(Empty::new())?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        self.lock().push(connection);
        Ok(status)
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
