//! Tasks finish before the server ends: `cargo run --example graceful_shutdown`, `curl -X POST localhost:3000/mail/5`, Ctrl-C.

use std::{error::Error, io, net::Ipv4Addr, thread, time::Duration};

use axum::{Router, extract, http::StatusCode, routing};
use clap::Parser;
use tokio::{net::TcpListener, signal, sync::oneshot, time};
use tower_offload::{AfterResponse, AfterResponseLayer, Background, after_response::RegisterError, axum as tracked};

#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// How many seconds there are from the signal to the end
    #[arg(long, default_value_t = 10)]
    grace: u64,
}

async fn mail(after: AfterResponse, extract::Path(seconds): extract::Path<u64>) -> Result<StatusCode, RegisterError> {
    after.task("mail").spawn_blocking(move || {
        println!("sending a mail");
        thread::sleep(Duration::from_secs(seconds)); // stands for a mail server that takes its time
        println!("sent");
    })?; // full or closed: a 503, before anything was promised
    Ok(StatusCode::ACCEPTED)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Options { port, grace } = Options::parse();
    let tasks = Background::default();
    let app = Router::new().route("/mail/{seconds}", routing::post(mail)).layer(AfterResponseLayer::new(tasks.clone()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let interrupted = interrupted()?; // from here on a signal drains
    println!("listening on http://{}", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(tracked::FlushListener::new(listener), tracked::FlushMakeService::new(app));
    let server = tokio::spawn(server.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
    interrupted.await;
    let deadline = time::Instant::now() + Duration::from_secs(grace); // one for both: requests may still register tasks
    drop(stop);
    drop(time::timeout_at(deadline, server).await);
    let report = tasks.drain(deadline.saturating_duration_since(time::Instant::now())).await;
    println!("stopped: {report}");
    Ok(())
}

#[cfg(unix)]
fn interrupted() -> io::Result<impl Future> {
    use signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

#[cfg(not(unix))]
fn interrupted() -> io::Result<impl Future> {
    Ok(signal::ctrl_c())
}
