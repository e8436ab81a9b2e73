//! A pool that tenants share fairly: `cargo run --example fair_by_tenant`.
//!
//! A greedy tenant sends 50 requests at once. The quiet one sends a single request after that, and
//! is answered as if the other one had sent two.

use std::{thread, time::Duration};

use axum::{Router, routing::get};
use futures_util::future::join_all;
use http_body_util::Empty;
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, time::Instant};
use tower_offload::{OffloadLayer, ThreadPool};

const QUERY: Duration = Duration::from_millis(50);

fn app(pool: ThreadPool) -> Router {
    let offload = OffloadLayer::new(pool)
        .fair_by(|head| head.headers().get("x-tenant").cloned()) // set by your authentication
        .max_in_flight_per_key(20); // more are answered 429 with `Retry-After`
    let query = async || {
        thread::sleep(QUERY);
        "rows"
    };
    Router::new().route("/query", get(query)).layer(offload)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().name("queries").threads(2).build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/query", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, app(pool)).into_future());

    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let send = async |tenant: &str| -> anyhow::Result<(StatusCode, Duration)> {
        let (request, start) = (Request::builder().uri(&url).header("x-tenant", tenant), Instant::now());
        Ok((client.request(request.body(Empty::new())?).await?.status(), start.elapsed()))
    };
    let greedy = join_all((0..50).map(|_| send("greedy")));
    let quiet = async {
        tokio::time::sleep(2 * QUERY).await; // the greedy tenant's requests wait by now
        send("quiet").await
    };
    let (greedy, quiet) = tokio::join!(greedy, quiet);
    let greedy = greedy.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let times: Vec<_> = greedy.iter().filter(|(of, _)| *of == status).map(|(_, time)| time.as_millis()).collect();
        println!("greedy: {} x {status}, up to {} ms", times.len(), times.iter().max().unwrap_or(&0));
    }
    let (status, time) = quiet?;
    println!("quiet: {status} after {} ms", time.as_millis());
    Ok(())
}
