//! A server whose work may loop, leak or crash: `cargo run --example process_pool -- --port 3000`.

#[cfg(unix)]
use {
    axum::{Json, Router, extract::Query, http::StatusCode, routing::get},
    clap::Parser,
    serde::{Deserialize, Serialize},
    serde_json::{Value, json},
    std::{error::Error, net::Ipv4Addr, thread, time::Duration},
    tower_offload::{
        axum::{serve, shutdown_signal},
        process::{self, Context, KilledBy, ProcessPool, Work},
    },
};

/// Answers GET /render?mode=ok|loop|leak|crash, /ping and /stats.
#[cfg(unix)]
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 3000)]
    port: u16,
}

#[cfg(unix)]
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Ok,
    Loop,
    Leak,
    Crash,
}

#[cfg(unix)]
#[derive(Debug, Serialize, Deserialize)]
struct Render {
    mode: Mode,
}

#[cfg(unix)]
impl Work for Render {
    const KIND: &'static str = "render";
    type Output = String;
    type Error = String;

    fn run(self, _: &Context) -> Result<String, String> {
        match self.mode {
            Mode::Ok => Ok(format!("rendered by process {}", std::process::id())),
            Mode::Loop => loop {
                std::hint::spin_loop();
            },
            Mode::Leak => loop {
                std::mem::forget(vec![1_u8; 4 << 20]);
                thread::sleep(Duration::from_millis(1));
            },
            Mode::Crash => std::process::abort(),
        }
    }
}

#[cfg(unix)]
async fn render(pool: ProcessPool, work: Render) -> (StatusCode, Json<Value>) {
    match pool.run(work).timeout(Duration::from_secs(1)).await {
        Ok(page) => (StatusCode::OK, Json(json!({ "page": page }))),
        Err(error) => {
            let status = match error.killed_by() {
                Some(KilledBy::Timeout) => StatusCode::GATEWAY_TIMEOUT,
                _ if error.is_overload() => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, Json(json!({ "killed_by": error.killed_by().map(|by| by.as_str()), "error": error.to_string() })))
        }
    }
}

#[cfg(unix)]
fn main() -> Result<(), Box<dyn Error>> {
    process::init::<Render>(); // never returns in a worker process
    run(Options::parse())
}

#[cfg(unix)]
#[tokio::main]
async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let pool = ProcessPool::builder().processes(2).max_memory(256 << 20).build()?;
    let (renders, stats) = (pool.clone(), pool.clone());
    let app = Router::new()
        .route("/render", get(|Query(work): Query<Render>| render(renders, work)))
        .route("/stats", get(async move || format!("{:#?}\n", stats.stats())))
        .route("/ping", get(async || "pong\n"));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, app).shutdown(shutdown_signal()?, Duration::from_secs(10), None).await;
    pool.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

#[cfg(not(unix))]
fn main() {
    eprintln!("this example needs Unix");
}
