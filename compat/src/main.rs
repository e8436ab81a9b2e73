//! Tracked connections on the oldest supported hyper and h2: `cargo run --release -- [--cancels]
//! [--plain]`.
//!
//! Sends two thousand responses of different sizes each over HTTP/2, sequential HTTP/1 and
//! pipelined HTTP/1. Each response must have one outcome, and it must be `Flushed` if the client
//! received the whole response. The exit code is 1 otherwise.
//!
//! With `--cancels` clients reset streams and disconnect. These versions may then close HTTP/2
//! connections with `PROTOCOL_ERROR`, with and without tracking. `--plain` disables tracking, as
//! the control for that.

mod http1;
mod http2;
mod ledger;
mod server;
mod work;

use std::{error::Error, process::ExitCode, sync::Arc};

use tokio::task::JoinSet;
use tower_offload::flush::Tracker;

use self::{ledger::Ledger, server::Server};

type BoxError = Box<dyn Error + Send + Sync>;

/// Number of connections of each kind.
const CONNECTIONS: u32 = 4;
/// Number of requests on a connection.
const REQUESTS: u32 = 500;

/// Maximum number of errors that are printed.
const MAX_ERRORS: usize = 10;

#[derive(Debug, Clone, Copy)]
struct Options {
    cancels: bool,
    plain: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Http1,
    Http1Pipelined,
    Http2,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut options = Options { cancels: false, plain: false };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--cancels" => options.cancels = true,
            "--plain" => options.plain = true,
            _ => {
                eprintln!("usage: cargo run --release -- [--cancels] [--plain]");
                return ExitCode::FAILURE;
            }
        }
    }
    let mut is_right = true;
    for kind in [Kind::Http1, Kind::Http1Pipelined, Kind::Http2] {
        is_right &= stress(kind, options).await;
    }
    if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the connections of one kind and prints a summary. Returns `true` if every outcome is right.
async fn stress(kind: Kind, options: Options) -> bool {
    let ledger = Arc::new(Ledger::default());
    let tracker = (!options.plain).then(Tracker::new);
    let server = Server::new(ledger.clone(), tracker.clone());
    let mut connections = JoinSet::new();
    for number in 0..CONNECTIONS {
        let ids = number * REQUESTS + 1..=(number + 1) * REQUESTS;
        let (server, ledger) = (server.clone(), ledger.clone());
        connections.spawn(async move {
            match kind {
                Kind::Http1 => http1::connection(ids, 1, options.cancels, &server, &ledger).await,
                Kind::Http1Pipelined => http1::connection(ids, 16, options.cancels, &server, &ledger).await,
                Kind::Http2 => http2::connection(ids, options.cancels, &server, &ledger).await,
            }
        });
    }
    let mut failures = Vec::new();
    while let Some(connection) = connections.join_next().await {
        let ended = connection.unwrap_or_else(|panicked| Err(panicked.into()));
        failures.extend(ended.err().map(|error| error.to_string()));
    }
    ledger.all_reported().await;
    let stats = tracker.map(|tracker| tracker.stats());
    let errors = ledger.errors(options, stats, &failures);
    println!("{kind:?}: {}", ledger.summary(stats, &failures));
    for error in errors.iter().take(MAX_ERRORS) {
        println!("  WRONG: {error}");
    }
    if errors.len() > MAX_ERRORS {
        println!("  WRONG: {} more", errors.len() - MAX_ERRORS);
    }
    errors.is_empty()
}
