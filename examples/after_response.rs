//! How each response ended, for anyone with curl: `cargo run --release --example after_response -- --tracked`.
//!
//! Standard output is JSON lines: one for each request when its hook fires, one for each task that ran, and at the end the report
//! of the drain. All else goes to standard error. With `--tracked` outcomes say `flushed`, with `--plain` `handed_over`; HTTP/1 and
//! HTTP/2 are both spoken (`curl --http2-prior-knowledge`, or `--tls` and `curl --insecure --http2`).

use std::{convert::Infallible, error::Error, io, net::Ipv4Addr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request},
    http::{HeaderMap, HeaderValue, StatusCode, Version, header::CONTENT_LENGTH},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Parser;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::{body::Frame, rt};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, flush::Tracker};

/// How long connections, and after them tasks, may take to end after SIGTERM or Ctrl-C.
const GRACE: Duration = Duration::from_secs(10);
/// What tasks get if the connections took all of it.
const LEAST_DRAIN: Duration = Duration::from_secs(1);
/// No route makes more than that: a mistyped number should not fill the memory.
const MOST_BYTES: usize = 1 << 30;

/// Prints how each response ended, once that is known.
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Connections are tracked: outcomes say when the socket took the last byte. The default.
    #[arg(long)]
    tracked: bool,
    /// Connections are not tracked: outcomes say when hyper took the last frame.
    #[arg(long, conflicts_with = "tracked")]
    plain: bool,
    /// TLS with a certificate made at the start; HTTP/1 or HTTP/2 by ALPN.
    #[arg(long)]
    tls: bool,
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
        .route("/panic", get(async || panic!("as was asked for") as ()))
        .route("/slow/{ms}", get(async |Path(ms): Path<u64>| time::sleep(Duration::from_millis(ms)).await))
}

/// Around every route, also of requests that have none: a hook that prints the outcome, and a task that says that it ran.
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
    match after.task("say").run(move || println!("{}", json!({"task": task, "ran": true}))) {
        Ok(_) => next.run(request).await,
        Err(rejected) => rejected.into_response(), // nothing was promised yet
    }
}

fn limited<R: IntoResponse>(bytes: usize, respond: impl FnOnce(usize) -> R) -> Response {
    if bytes <= MOST_BYTES {
        respond(bytes).into_response()
    } else {
        (StatusCode::PAYLOAD_TOO_LARGE, format!("at most {MOST_BYTES} bytes\n")).into_response()
    }
}

/// So many bytes in frames of at most 16 KiB.
fn pieces(bytes: usize) -> impl Iterator<Item = Bytes> + Send + 'static {
    const PIECE: usize = 16 * 1024;
    (0..bytes).step_by(PIECE).map(move |start| Bytes::from(vec![b'x'; PIECE.min(bytes - start)]))
}

async fn chunks(Path((count, size)): Path<(usize, usize)>) -> Response {
    // Also empty chunks are work.
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
        let error = stream::once(async { Err(io::Error::other("as was asked for")) });
        Body::from_stream(stream::iter(pieces(n).map(Ok)).chain(error))
    })
}

fn tls() -> Result<TlsAcceptor, Box<dyn Error>> {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()])?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// One connection. Tracked or plain, the app is the same.
async fn serve<I>(io: I, app: Router, tracker: Option<Tracker>, watcher: Watcher)
where
    I: rt::Read + rt::Write + Unpin + Send + 'static,
{
    let server = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(app);
    let served = match tracker {
        Some(tracker) => {
            let (io, service) = tracker.track(io, service);
            watcher.watch(server.serve_connection_with_upgrades(io, service)).await
        }
        None => watcher.watch(server.serve_connection_with_upgrades(io, service)).await,
    };
    if let Err(error) = served {
        eprintln!("connection: {error}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let tracker = (!options.plain).then(Tracker::new);
    let tls = options.tls.then(tls).transpose()?;
    let background = Background::default();
    let app = routes().layer(middleware::from_fn(report)).layer(AfterResponseLayer::new(background.clone()));

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    let scheme = if options.tls { "https" } else { "http" };
    eprintln!("listening on {scheme}://{}; SIGTERM or Ctrl-C ends it", listener.local_addr()?);

    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let Ok((stream, _)) = accepted.inspect_err(|error| eprintln!("accept: {error}")) else {
            time::sleep(Duration::from_millis(100)).await; // out of file descriptors, likely: not a busy loop
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (app, tracker, tls, watcher) = (app.clone(), tracker.clone(), tls.clone(), graceful.watcher());
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            match tls {
                None => serve(TokioIo::new(stream), app, tracker, watcher).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(TokioIo::new(stream), app, tracker, watcher).await,
                    Err(error) => eprintln!("handshake: {error}"),
                },
            }
        });
    }
    drop(listener);

    let deadline = time::Instant::now() + GRACE;
    if time::timeout_at(deadline, graceful.shutdown()).await.is_err() {
        eprintln!("some connections did not end within {} s", GRACE.as_secs());
        connections.shutdown().await;
    }
    // Connections first: what they registered until now is drained, too, and each outcome is told before the report.
    let drained = background.drain(deadline.duration_since(time::Instant::now()).max(LEAST_DRAIN)).await;
    let orphaned: Vec<_> = drained
        .still_running
        .iter()
        .map(|orphan| json!({"id": orphan.id, "name": orphan.name, "age_ms": orphan.age.as_millis()}))
        .collect();
    println!(
        "{}",
        json!({"drained": {"completed": drained.completed, "failed": drained.failed, "cancelled": drained.cancelled,
            "orphaned": orphaned}})
    );
    Ok(())
}
