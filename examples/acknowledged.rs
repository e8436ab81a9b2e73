//! An export that is kept until the TCP of a client has acknowledged all of it (Linux; elsewhere it
//! is kept forever): `cargo run --example acknowledged`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use tokio::{io, io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream, sync::mpsc};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, axum::serve};

#[derive(Clone)]
struct Outbox {
    exports: Arc<Mutex<HashMap<u32, Bytes>>>,
    log: mpsc::UnboundedSender<String>,
}

/// Sends an export, and deletes it if it was delivered. A client that has received it and crashed
/// meanwhile cannot fetch it again: only a request of the client itself could confirm more.
async fn fetch(after: AfterResponse, State(outbox): State<Outbox>, Path(id): Path<u32>) -> Result<Bytes, StatusCode> {
    let export = outbox.exports.lock().expect("no panic").get(&id).cloned().ok_or(StatusCode::NOT_FOUND)?;
    after.request_acknowledgement();
    after.hook(move |outcome| {
        let line = if outcome.is_acknowledged() {
            outbox.exports.lock().expect("no panic").remove(&id);
            format!("export {id}: delivered and deleted")
        } else {
            format!("export {id}: kept ({}, {})", outcome.end, outcome.delivery)
        };
        let _ = outbox.log.send(line);
    });
    Ok(export)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (log, mut lines) = mpsc::unbounded_channel();
    let export = (1, Bytes::from(vec![b'x'; 32 << 20])); // more than the buffers of the two sockets
    let outbox = Outbox { exports: Arc::new(Mutex::new(HashMap::from([export]))), log };
    let app = Router::new().route("/exports/{id}", get(fetch)).with_state(outbox);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, app.layer(AfterResponseLayer::new(Background::default()))).into_future());

    // The first client leaves early, and the second one reads everything.
    for bytes in [1000, u64::MAX] {
        let mut client = TcpStream::connect(address).await?;
        client.write_all(b"GET /exports/1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        io::copy(&mut client.take(bytes), &mut io::sink()).await?;
        println!("{}", lines.recv().await.unwrap_or_default());
    }
    Ok(())
}
