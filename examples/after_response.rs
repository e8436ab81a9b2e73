//! Prints how each response ended: `cargo run --release --example after_response`, then use curl.
//!
//! Standard output has one line of JSON for each request when its hook runs, for each task that
//! ran, and at the end for the shutdown. Everything else goes to standard error. Outcomes say
//! `flushed`, or `handed_over` with `--plain`. The server speaks HTTP/1 and HTTP/2 (`curl
//! --http2-prior-knowledge`).

use std::{convert::Infallible, error::Error, io, net::Ipv4Addr, process::ExitCode, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request},
    http::{HeaderMap, HeaderValue, StatusCode, Version, header::CONTENT_LENGTH},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use clap::Parser;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use tokio::{net::TcpListener, time};
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    axum::{serve, shutdown_signal},
};

/// The time from SIGTERM or Ctrl-C until connections and tasks have ended.
const GRACE: Duration = Duration::from_secs(10);
/// The largest response, so that a mistyped number does not exhaust the memory.
const MAX_BYTES: usize = 1 << 30;

/// Prints how each response ended.
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Track connections: outcomes say when the socket took the last byte. The default.
    #[arg(long)]
    tracked: bool,
    /// Do not track connections: outcomes say when hyper took the last frame.
    #[arg(long, conflicts_with = "tracked")]
    plain: bool,
}

fn routes() -> Router {
    Router::new()
        .route("/bytes/{n}", get(async |Path(n): Path<usize>| limited(n, |n| Body::from(vec![b'x'; n]))))
        .route("/chunks/{count}/{size}", get(chunks))
        .route("/length/{n}", get(length))
        .route("/trailers/{n}", get(trailers))
        .route("/error/{n}", get(failing))
        .route("/empty", get(async || Body::empty()))
        .route("/no-content", get(async || StatusCode::NO_CONTENT))
        .route("/not-modified", get(async || StatusCode::NOT_MODIFIED))
        .route("/panic", get(async || panic!("requested panic") as ()))
        .route("/slow/{ms}", get(async |Path(ms): Path<u64>| time::sleep(Duration::from_millis(ms)).await))
}

/// Registers a hook that prints the outcome and a task that prints that it ran. The middleware
/// wraps all routes, so that requests with unknown paths are reported too.
async fn report(after: AfterResponse, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let version =
        if request.version() == Version::HTTP_2 { "HTTP/2.0".to_owned() } else { format!("{:?}", request.version()) };
    let task = format!("{method} {path}");
    after.hook(move |outcome| {
        let status = outcome.status.map(|status| status.as_u16());
        let (end, delivery, body_bytes) = (outcome.end.to_string(), outcome.delivery.to_string(), outcome.body_bytes);
        let total_ms = outcome.total.as_secs_f64() * 1000.0;
        println!(
            "{}",
            json!({"method": method, "path": path, "version": version, "status": status, "end": end,
                "delivery": delivery, "body_bytes": body_bytes, "total_ms": total_ms})
        );
    });
    match after.task("print").spawn_blocking(move || println!("{}", json!({"task": task, "ran": true}))) {
        Ok(_) => next.run(request).await,
        Err(rejected) => rejected.into_response(), // nothing was promised yet
    }
}

fn limited<R: IntoResponse>(bytes: usize, respond: impl FnOnce(usize) -> R) -> Response {
    if bytes <= MAX_BYTES {
        respond(bytes).into_response()
    } else {
        (StatusCode::PAYLOAD_TOO_LARGE, format!("at most {MAX_BYTES} bytes\n")).into_response()
    }
}

/// Returns `bytes` bytes in frames of at most 16 KiB.
fn pieces(bytes: usize) -> impl Iterator<Item = Bytes> + Send + 'static {
    const PIECE: usize = 16 * 1024;
    (0..bytes).step_by(PIECE).map(move |start| Bytes::from(vec![b'x'; PIECE.min(bytes - start)]))
}

async fn chunks(Path((count, size)): Path<(usize, usize)>) -> Response {
    // Empty chunks count too, because each of them takes time.
    limited(count.saturating_mul(size.max(1)), |_| {
        let chunk = Bytes::from(vec![b'x'; size]);
        Body::from_stream(stream::iter((0..count).map(move |_| Ok::<_, Infallible>(chunk.clone()))))
    })
}

async fn length(Path(n): Path<usize>) -> Response {
    limited(n, |n| ([(CONTENT_LENGTH, n)], Body::from_stream(stream::iter(pieces(n).map(Ok::<_, Infallible>)))))
}

async fn trailers(Path(n): Path<usize>) -> Response {
    limited(n, |n| {
        let trailers = HeaderMap::from_iter([("x-end".parse().expect("a name"), HeaderValue::from_static("here"))]);
        let frames = pieces(n).map(Frame::data).chain([Frame::trailers(trailers)]);
        ([("trailer", "x-end")], Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)))))
    })
}

async fn failing(Path(n): Path<usize>) -> Response {
    limited(n, |n| {
        let error = stream::once(async { Err(io::Error::other("requested error")) });
        Body::from_stream(stream::iter(pieces(n).map(Ok)).chain(error))
    })
}

/// Serves the app until a signal, on tracked or plain connections.
async fn start(options: Options) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await;
    let listener = listener.map_err(|error| format!("cannot listen on port {}: {error}", options.port))?;
    eprintln!("listening on http://{}; SIGTERM or Ctrl-C ends it", listener.local_addr()?);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let background = Background::default();
    let app = routes().layer(middleware::from_fn(report)).layer(AfterResponseLayer::new(background.clone()));
    let signal = shutdown_signal()?;
    let tasks = if options.plain {
        axum::serve(listener, app).with_graceful_shutdown(signal).await?;
        background.shutdown(GRACE).await
    } else {
        let report = serve(listener, app).shutdown(signal, GRACE, &background).await;
        if report.open_connections > 0 {
            eprintln!("{} connections did not end in time", report.open_connections);
        }
        report.background
    };
    let still_running: Vec<_> = tasks
        .still_running
        .iter()
        .map(|task| json!({"id": task.id, "name": task.name, "age_ms": task.age.as_millis()}))
        .collect();
    println!(
        "{}",
        json!({"shutdown": {"completed": tasks.completed, "failed": tasks.failed, "cancelled": tasks.cancelled,
            "still_running": still_running}})
    );
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = start(Options::parse()).await {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
