//! An HTTP/2 client with small windows and many concurrent requests.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{BoxError, ledger::Ledger, server::Server, work::Work};

const MAX_CONCURRENT: usize = 90;

/// Window of a stream. Most responses need several windows.
const STREAM_WINDOW: u32 = 10_000;

/// With `cancels`, some responses are reset before their head and some during their body.
pub(crate) async fn connection(
    ids: RangeInclusive<u32>,
    cancels: bool,
    server: &Server,
    ledger: &Arc<Ledger>,
) -> Result<(), BoxError> {
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(1 << 16)
        .handshake(TokioIo::new(server.connect()))
        .await?;
    let connection = tokio::spawn(connection);
    let (permits, mut responses) = (Arc::new(Semaphore::new(MAX_CONCURRENT)), JoinSet::new());
    for work in ids.map(Work::new) {
        let permit = permits.clone().acquire_owned().await?;
        let (requests, ledger) = (requests.clone(), ledger.clone());
        responses.spawn(async move {
            let received = response(requests, work, cancels && work.is_cancelled()).await?;
            if received {
                ledger.received(work.id);
            }
            drop(permit);
            Ok::<_, BoxError>(())
        });
    }
    drop(requests);
    let mut failed = None;
    while let Some(response) = responses.join_next().await {
        failed = failed.or(response?.err());
    }
    // The error of the connection is the cause of those of its responses.
    connection.await??;
    failed.map_or(Ok(()), Err)
}

/// Returns `false` if the response was cancelled.
async fn response(mut requests: SendRequest<Full<Bytes>>, work: Work, cancel: bool) -> Result<bool, BoxError> {
    let uri = format!("http://server{work}");
    let upload = work.upload();
    let method = if upload == 0 { "GET" } else { "POST" };
    let request = Request::builder().method(method).uri(uri).body(Full::from(vec![b'r'; upload]))?;
    requests.ready().await?;
    let response = requests.send_request(request);
    if cancel && work.id % 2 == 0 {
        tokio::select! {
            biased;
            _ = response => {}
            _ = tokio::task::yield_now() => {}
        }
        return Ok(false);
    }
    let mut body = response.await?.into_body();
    if cancel {
        let _ = body.frame().await;
        return Ok(false);
    }
    let length = body.collect().await?.to_bytes().len();
    if length == work.length {
        Ok(true)
    } else {
        Err(format!("response {} has {length} bytes instead of {}", work.id, work.length).into())
    }
}
