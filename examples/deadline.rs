//! Requests with deadlines: `cargo run --example deadline --features axum`.

use std::time::Duration;

use axum::{Router, extract::Path, http, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, time::Instant};
use tower_offload::{OffloadLayer, Pool, ThreadPool, pool, remaining};

/// Works for a number of milliseconds, unless the result is no longer wanted.
async fn work(Path(milliseconds): Path<u64>) -> &'static str {
    println!("  /report/{milliseconds} starts with {:.1?} left", remaining().unwrap_or(Duration::MAX));
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(milliseconds) {
        if let Some(reason) = pool::cancel_reason() {
            println!("  /report/{milliseconds} stops after {:.0?}: {}", started.elapsed(), reason.as_str());
            return ""; // the layer answers
        }
        std::thread::sleep(Duration::from_millis(1)); // one step
    }
    "done"
}

/// Reads the header `x-timeout`, in milliseconds. For gRPC there is `.grpc_timeout()`.
fn client_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    Some(Duration::from_millis(headers.get("x-timeout")?.to_str().ok()?.parse().ok()?))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().threads(1).build()?;
    let layer = OffloadLayer::new(pool.clone())
        .timeout(|_head| Some(Duration::from_secs(1))) // that of the server
        .timeout(|head| client_timeout(head.headers())); // the earlier one applies
    let app = Router::new().route("/report/{milliseconds}", get(work)).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let send = async |milliseconds: u64, timeout: &str| {
        let request = http::Request::get(format!("http://{address}/report/{milliseconds}"));
        let response = client.request(request.header("x-timeout", timeout).body(Empty::new())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("/report/{milliseconds} with {timeout} ms: {status} {}", String::from_utf8_lossy(&body));
        anyhow::Ok(())
    };
    send(10, "5000").await?; // in time
    let second = async {
        while pool.stats().started < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        send(10, "100").await // never starts, because the first one runs
    };
    tokio::try_join!(send(2000, "900"), second)?;
    pool.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
