//! An axum router that runs some of its requests on a pool: `cargo run --example axum`.

use std::{thread, time::Duration};

use axum::{Router, routing::get};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower_offload::{OffloadLayer, ThreadPool, offload::ProblemJson};

/// Blocks the thread, like a synchronous driver or a computation.
async fn write_report() -> String {
    thread::sleep(Duration::from_millis(300));
    format!("written on {}", current_thread())
}

async fn read_report() -> String {
    format!("read on {}", current_thread())
}

fn current_thread() -> String {
    thread::current().name().unwrap_or("an unnamed thread").to_owned()
}

fn app(pool: ThreadPool) -> Router {
    let offload = OffloadLayer::new(pool)
        .max_in_flight(2) // a third call is answered 503 with `Retry-After` at once
        .reject(ProblemJson) // with the reason in the body
        .filter(|head| head.method() == Method::POST); // other requests run inline
    Router::new()
        .route("/report", get(read_report).post(write_report))
        .layer(offload) // applies to the routes above
        .route("/ping", get(async || "pong"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().name("reports").threads(1).build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app(pool)).into_future());

    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let send = async |method: Method, path: &str| -> anyhow::Result<()> {
        let request = Request::builder().method(&method).uri(format!("http://{address}{path}")).body(Empty::new())?;
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        Ok(())
    };
    send(Method::POST, "/report").await?;
    // Four reports, of which two are rejected. Requests that need no pool do not wait for it.
    let burst = join_all((0..4).map(|_| send(Method::POST, "/report")));
    let others = join_all([send(Method::GET, "/report"), send(Method::GET, "/ping")]);
    let (burst, others) = tokio::join!(burst, others);
    burst.into_iter().chain(others).collect()
}
