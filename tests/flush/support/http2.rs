use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Method, Request, Response};
use tokio::task::JoinHandle;

use super::Site;

/// A window larger than any test needs.
pub(crate) const WIDE_WINDOW: u32 = 1 << 26;

/// An HTTP/2 client that leaves windows and resets to the test.
pub(crate) struct Http2 {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

/// A response that was read completely.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) head: Response<()>,
    pub(crate) body: u64,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Http2 {
    /// Opens a connection with wide windows.
    pub(crate) async fn connect(site: &Site) -> Self {
        Self::with_windows(site, WIDE_WINDOW, WIDE_WINDOW).await
    }

    pub(crate) async fn with_windows(site: &Site, stream: u32, connection: u32) -> Self {
        let (io, _wire) = site.connect().await;
        let mut builder = Builder::new();
        builder.initial_window_size(stream).initial_connection_window_size(connection);
        let (requests, connection) = builder.handshake(io).await.unwrap();
        let connection = tokio::spawn(async move { _ = connection.await });
        Self { requests, connection }
    }

    /// Sends a request without a body.
    pub(crate) async fn start(&mut self, path: &str) -> ResponseFuture {
        self.request(Method::GET, path, true).await.0
    }

    pub(crate) async fn request(
        &mut self,
        method: Method,
        path: &str,
        end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::builder().method(method).uri(format!("http://site{path}")).body(()).unwrap();
        self.send(request, end).await
    }

    pub(crate) async fn send(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        self.ready().await;
        self.requests.send_request(request, end).unwrap()
    }

    /// Waits until the server allows another request.
    pub(crate) async fn ready(&mut self) {
        self.requests = self.requests.clone().ready().await.unwrap();
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Read, h2::Error> {
        read(self.start(path).await).await
    }

    /// Closes the connection.
    pub(crate) async fn hang_up(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }
}

/// Reads a response to its end, and renews the windows.
pub(crate) async fn read(response: ResponseFuture) -> Result<Read, h2::Error> {
    let (head, body) = response.await?.into_parts();
    let (body, trailers) = drain(body).await?;
    Ok(Read { head: Response::from_parts(head, ()), body, trailers })
}

pub(crate) async fn drain(mut body: RecvStream) -> Result<(u64, Option<HeaderMap>), h2::Error> {
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        bytes += data.len() as u64;
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((bytes, body.trailers().await?))
}
