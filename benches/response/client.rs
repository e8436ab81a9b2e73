//! The client. It shares a thread with the server and is part of every figure, so it does as little
//! as possible.

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::client::{self, ResponseFuture, SendRequest};
use http::{HeaderValue, Request, Uri, header::USER_AGENT};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tower_offload_benches::BoxError;

use crate::{Protocol, server::BODY};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";

pub(crate) enum Client {
    /// Writes the same bytes repeatedly, and reads the same number of bytes in return.
    Http1 {
        transport: DuplexStream,
        requests: Vec<u8>,
        responses: Vec<u8>,
    },
    Http2 {
        requests: SendRequest<Bytes>,
        responses: Vec<ResponseFuture>,
    },
}

impl Client {
    pub(crate) async fn new(protocol: Protocol, mut transport: DuplexStream) -> Result<Self, BoxError> {
        let concurrency = protocol.concurrency();
        if protocol == Protocol::Http2 {
            let (requests, connection) = client::handshake(transport).await?;
            tokio::spawn(async { drop(connection.await) });
            return Ok(Self::Http2 { requests, responses: Vec::with_capacity(concurrency) });
        }
        transport.write_all(REQUEST).await?;
        let mut response = Vec::new();
        while !response.ends_with(BODY) {
            if transport.read_buf(&mut response).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
        let responses = vec![0; response.len() * concurrency];
        Ok(Self::Http1 { transport, requests: REQUEST.repeat(concurrency), responses })
    }

    /// Sends the number of requests that the protocol has in flight, and waits for all responses.
    pub(crate) async fn exchange(&mut self, protocol: Protocol) -> Result<(), BoxError> {
        match self {
            Self::Http1 { transport, requests, responses } => {
                transport.write_all(requests).await?;
                // All responses have the length of the first, because dates have a fixed length.
                transport.read_exact(responses).await?;
                if responses.ends_with(BODY) { Ok(()) } else { Err("the response differs from the first".into()) }
            }
            Self::Http2 { requests, responses } => {
                for _ in 0..protocol.concurrency() {
                    poll_fn(|cx| requests.poll_ready(cx)).await?;
                    let mut request = Request::new(());
                    *request.uri_mut() = Uri::from_static("http://server/");
                    // Every client sends a field.
                    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("b"));
                    responses.push(requests.send_request(request, true)?.0);
                }
                for response in responses.drain(..) {
                    let mut body = response.await?.into_body();
                    let mut received = 0;
                    while let Some(data) = body.data().await {
                        let data = data?;
                        received += data.len();
                        body.flow_control().release_capacity(data.len())?;
                    }
                    if received != BODY.len() {
                        return Err("the response has another length than the first".into());
                    }
                }
                Ok(())
            }
        }
    }
}
