//! Work that may loop, leak or crash: `cargo run --example process_pool -- --port 3000`, then GET /render?mode=loop.

#[cfg(unix)]
use {
    axum::{Json, Router, extract::Query, extract::State, response::IntoResponse, routing::get},
    std::{hint::black_box, hint::spin_loop, iter::repeat_with, mem::forget, time::Duration},
    tower_offload::axum::{serve, shutdown_signal},
    tower_offload::process::{self, Context, ProcessPool, Work},
};

#[cfg(unix)]
#[derive(serde::Serialize, serde::Deserialize)]
struct Render {
    mode: String,
}

#[cfg(unix)]
impl Work for Render {
    const KIND: &'static str = "render";
    type Output = String;
    type Error = String;
    fn run(self, _: &Context) -> Result<String, String> {
        match &*self.mode {
            "loop" => repeat_with(spin_loop).for_each(drop),
            "leak" => repeat_with(|| vec![1_u8; 4 << 20]).for_each(|block| forget(black_box(block))),
            "crash" => std::process::abort(),
            _ => {}
        }
        Ok(format!("rendered by process {}", std::process::id()))
    }
}

#[cfg(unix)]
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    process::init::<Render>(); // never returns in a worker process
    let port = clap::arg!(--port <PORT>).default_value("3000").value_parser(clap::value_parser!(u16));
    let options = clap::Command::new("process_pool").arg(port).get_matches();
    let port = options.get_one::<u16>("port").expect("it has a default");
    let pool = ProcessPool::builder().processes(2).max_memory(256 << 20).build()?;
    let render = async |State(pool): State<ProcessPool>, Query(work): Query<Render>| {
        let error = match pool.run(work).timeout(Duration::from_secs(1)).await {
            Ok(page) => return Json(serde_json::json!({ "page": page })).into_response(),
            Err(error) => error,
        };
        let killed_by = error.killed_by().map(|by| by.as_str());
        eprintln!("{error}"); // not for the client: it may have what the process wrote to stderr
        let body = Json(serde_json::json!({ "killed_by": killed_by }));
        let (head, _) = error.into_response().into_parts(); // 503 with `Retry-After`, 504 or 500
        (head, body).into_response()
    };
    let app = Router::new().route("/render", get(render)).route("/ping", get(async || "pong\n"));
    let app = app.route("/stats", get(async |State(pool): State<ProcessPool>| format!("{:#?}\n", pool.stats())));
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, app.with_state(pool.clone())).shutdown(shutdown_signal()?, Duration::from_secs(10), None).await;
    pool.shutdown(Duration::from_secs(1)).await;
    Ok(())
}
#[cfg(not(unix))]
fn main() {} // process pools need Unix
