//! Tasks finish before the server stops, within a grace period:
//! `cargo run --example graceful_shutdown`, `curl -X POST localhost:3000/mail/5`, Ctrl-C.

use std::{error::Error, net::Ipv4Addr, process::ExitCode, thread, time::Duration};

use axum::{Router, extract::Path, http::StatusCode, routing::post};
use clap::Parser;
use tokio::net::TcpListener;
use tower_offload::{
    AfterResponse, AfterResponseLayer, Background,
    after_response::RegisterError,
    axum::{serve, serve::ServeShutdownReport, shutdown_signal},
};

/// Sends pretended mails after the response, and finishes them before it stops.
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Seconds from the signal until the server has stopped.
    #[arg(long, default_value_t = 10)]
    grace: u64,
}

async fn mail(after: AfterResponse, Path(seconds): Path<u64>) -> Result<StatusCode, RegisterError> {
    after.task("mail").spawn_blocking(move || {
        println!("sending a mail");
        thread::sleep(Duration::from_secs(seconds)); // a slow mail server
        println!("sent");
    })?; // the background is full or closed: a 503, before anything was promised
    Ok(StatusCode::ACCEPTED)
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(report) => println!("stopped: {report}"),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn run(Options { port, grace }: Options) -> Result<ServeShutdownReport, Box<dyn Error>> {
    let background = Background::default();
    let app = Router::new().route("/mail/{seconds}", post(mail)).layer(AfterResponseLayer::new(background.clone()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    let listener = listener.map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    let signal = shutdown_signal()?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(serve(listener, app).shutdown(signal, Duration::from_secs(grace), &background).await)
}
