//! The client, which shares the server's thread and is part of every figure: so it does as little as it can.

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::client::{self, ResponseFuture, SendRequest};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{BoxError, plan::Protocol, server::BODY};

pub(crate) enum Client {
    /// Bytes that are written again and again, and as many as they are answered with.
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
        if protocol == Protocol::Http2 {
            let (requests, connection) = client::handshake(transport).await?;
            tokio::spawn(async { drop(connection.await) });
            return Ok(Self::Http2 { requests, responses: Vec::with_capacity(protocol.at_once()) });
        }
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n";
        transport.write_all(REQUEST).await?;
        let mut response = Vec::new();
        while !response.ends_with(BODY) {
            if transport.read_buf(&mut response).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
        let at_once = protocol.at_once();
        Ok(Self::Http1 { transport, requests: REQUEST.repeat(at_once), responses: vec![0; response.len() * at_once] })
    }

    /// As many requests as the protocol has at once, until all are answered.
    pub(crate) async fn exchange(&mut self, protocol: Protocol) -> Result<(), BoxError> {
        match self {
            Self::Http1 { transport, requests, responses } => {
                transport.write_all(requests).await?;
                // Every response is as long as the first: the date has one length.
                transport.read_exact(responses).await?;
                if responses.ends_with(BODY) { Ok(()) } else { Err("another response than the first".into()) }
            }
            Self::Http2 { requests, responses } => {
                for _ in 0..protocol.at_once() {
                    poll_fn(|cx| requests.poll_ready(cx)).await?;
                    let (response, _) = requests.send_request(request(), true)?;
                    responses.push(response);
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
                        return Err("a response of another length".into());
                    }
                }
                Ok(())
            }
        }
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = http::Uri::from_static("http://server/");
    request
}
