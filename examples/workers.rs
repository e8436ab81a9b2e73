//! Several processes that serve one port: `cargo run --example workers -- --port 3000 --workers 4`.
//!
//! `kill -HUP` replaces them: no connection is refused, and requests in progress are answered.
//! `kill -9` of one costs only what it serves. Connections that wait in the queue are kept, because
//! all share one socket: `net.ipv4.tcp_migrate_req` matters only with `SO_REUSEPORT`.

#[cfg(unix)]
use {
    axum::{Router, extract::Path, routing::get},
    clap::Parser,
    listenfd::ListenFd,
    std::{io, net::TcpListener, time::Duration},
    tower_offload::{
        axum::serve,
        process::workers::{Supervisor, Worker},
    },
};

/// Answers GET /pid and GET /slow/{ms}.
#[cfg(unix)]
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free. A socket from systemd takes precedence.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Number of worker processes.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

#[cfg(unix)]
fn main() -> anyhow::Result<()> {
    let Options { port, workers } = Options::parse();
    let listen = move || {
        let activated = ListenFd::from_env().take_tcp_listener(0)?;
        let listener = activated.map_or_else(|| TcpListener::bind(("127.0.0.1", port)), Ok)?;
        println!("listening on http://{}", listener.local_addr()?);
        io::Result::Ok(listener)
    };
    let supervisor = Supervisor::builder().workers(workers).listen(listen).drain_timeout(Duration::from_secs(10));
    println!("stopped: {}", supervisor.on_event(|event| println!("{event}")).run(work)?);
    Ok(())
}

/// Runs in each worker process.
#[cfg(unix)]
#[tokio::main]
async fn work(mut worker: Worker) -> io::Result<()> {
    let slow = async |Path(ms): Path<u64>| tokio::time::sleep(Duration::from_millis(ms)).await;
    let app = Router::new().route("/pid", get(async || std::process::id().to_string())).route("/slow/{ms}", get(slow));
    let listener = tokio::net::TcpListener::from_std(worker.take_listener(0))?;
    worker.ready();
    serve(listener, app).shutdown(worker.drain_requested(), worker.drain_timeout(), None).await;
    Ok(())
}

#[cfg(not(unix))]
fn main() {
    eprintln!("this example needs Unix");
}
