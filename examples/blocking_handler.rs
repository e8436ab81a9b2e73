//! Blocking functions as axum handlers: `cargo run --example blocking_handler --features axum`.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, sync::Mutex};

use axum::extract::{Path, State};
use axum::{Json, Router, body::Bytes, http::StatusCode, routing::get};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_offload::{CallError, ThreadPool, axum::blocking, offload::BlockingBody};

/// Simulates a connection of a synchronous database driver.
type Notes = Arc<Mutex<BTreeMap<u32, Note>>>;

#[derive(Clone, Deserialize, Serialize)]
struct Note {
    text: String,
}

fn read(State(notes): State<Notes>, Path(id): Path<u32>) -> Result<Json<Note>, StatusCode> {
    let notes = notes.lock().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    notes.get(&id).cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

fn write(State(notes): State<Notes>, Path(id): Path<u32>, Json(note): Json<Note>) -> StatusCode {
    let Ok(mut notes) = notes.lock() else { return StatusCode::INTERNAL_SERVER_ERROR };
    if notes.insert(id, note).is_none() { StatusCode::CREATED } else { StatusCode::NO_CONTENT }
}

/// Returns a body of lines. The iterator may block, and is at most one line ahead of the client.
fn export(pool: ThreadPool, lines: u32) -> Result<BlockingBody, CallError> {
    BlockingBody::new(pool, (1..=lines).map(|line| Ok::<_, Infallible>(Bytes::from(format!("line {line}\n")))))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::blocking(16);
    let exporting = pool.clone();
    let app = Router::new()
        .route("/notes/{id}", get(blocking(pool.clone(), read)).put(blocking(pool, write)))
        .route("/export/{lines}", get(async move |Path(lines)| export(exporting, lines)))
        .with_state(Notes::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());

    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let milk = r#"{"text":"milk"}"#;
    for (method, path, body) in [("PUT", "/notes/7", milk), ("GET", "/notes/7", ""), ("GET", "/export/3", "")] {
        let request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        let request = request.header("content-type", "application/json").body(Full::from(body))?;
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("{method} {path}: {status} {}", String::from_utf8_lossy(&body).trim_end());
    }
    Ok(())
}
