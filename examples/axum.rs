//! An axum router of which some requests run on a pool: `cargo run --example axum`.

use std::{error::Error, thread, time::Duration};

use axum::{Router, routing::get};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower_offload::{OffloadLayer, ThreadPool, offload::ProblemJson};

/// Stands for a sync driver or a computation: the thread does nothing else meanwhile.
async fn write_report() -> String {
    thread::sleep(Duration::from_millis(300));
    format!("written on {}", here())
}

async fn read_report() -> String {
    format!("read on {}", here())
}

fn here() -> String {
    thread::current().name().unwrap_or("a thread without a name").to_owned()
}

fn app(pool: ThreadPool) -> Router {
    let offload = OffloadLayer::new(pool)
        .max_in_flight(2) // one more is answered 503 at once, with `Retry-After`
        .reject(ProblemJson) // and with a body that says why; without this line it is empty
        .filter(|head| head.method() == Method::POST); // other requests pass straight through
    Router::new()
        .route("/report", get(read_report).post(write_report))
        .layer(offload) // the routes above it, not those below
        .route("/ping", get(async || "pong"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let pool = ThreadPool::builder().name("reports").threads(1).build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app(pool)).into_future());

    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let ask = async |method: Method, path: &str| -> Result<(), Box<dyn Error + Send + Sync>> {
        let request = Request::builder().method(&method).uri(format!("http://{address}{path}")).body(Empty::new())?;
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(())
    };
    ask(Method::POST, "/report").await?;
    // More reports than places; meanwhile nobody waits for the pool who does not need it.
    let burst = join_all((0..4).map(|_| ask(Method::POST, "/report")));
    let others = join_all([ask(Method::GET, "/report"), ask(Method::GET, "/ping")]);
    let (burst, others) = tokio::join!(burst, others);
    burst.into_iter().chain(others).collect()
}
