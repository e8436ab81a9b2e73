//! Runs `examples/after_response.rs` as a program, over real connections.
//!
//! Build it first: `cargo build --workspace --examples --all-features`.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdout, Command},
    time::timeout,
};
use tower_offload_tests::{PATIENCE, example};

#[tokio::test]
async fn a_tracked_server_prints_what_was_flushed() {
    let mut server = Server::start(&["--tracked"]).await;
    server.walk("flushed").await;
    server.ends_in_order().await;
}

#[tokio::test]
async fn a_plain_server_prints_what_was_handed_over() {
    let mut server = Server::start(&["--plain"]).await;
    server.walk("handed_over").await;
    server.ends_in_order().await;
}

#[tokio::test]
async fn a_signal_lets_the_current_response_end() {
    let mut server = Server::start(&[]).await;
    let mut client = TcpStream::connect(&server.address).await.unwrap();
    client.write_all(b"GET /chunks/2000/16384 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'H'); // the response has begun, and cannot end before it is read
    server.signal("TERM").await;
    let mut answer = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with(b"\r\n0\r\n\r\n") && answer.len() > 2000 * 16384);
    server.expect(&json!({"end": "complete", "delivery": "flushed", "body_bytes": 2000 * 16384})).await;
    server.ends().await;
}

#[tokio::test]
async fn sizes_over_the_limit_are_rejected() {
    let mut server = Server::start(&[]).await;
    for path in ["/chunks/18446744073709551615/0", "/chunks/4294967296/4294967296", "/bytes/18446744073709551615"] {
        let answer = server.get(Method::GET, path, false).await.unwrap();
        assert!(answer.starts_with(b"at most "), "{answer:?}");
        server.expect(&json!({"path": path, "status": 413})).await;
    }
    server.ends_in_order().await;
}

#[tokio::test]
async fn contradictory_options_are_rejected() {
    let program = program();
    let output = Command::new(program).args(["--tracked", "--plain"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot be used with"));
}

struct Server {
    child: Child,
    outcomes: Lines<BufReader<ChildStdout>>,
    _log: Lines<BufReader<ChildStderr>>,
    address: String,
    clients: [Client<HttpConnector, Empty<Bytes>>; 2],
}

impl Server {
    async fn start(options: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["--port", "0"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let outcomes = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = timeout(PATIENCE, log.next_line()).await.unwrap().unwrap().unwrap();
        let address = first.strip_prefix("listening on http://").and_then(|rest| rest.split(';').next());
        let client = |http2| Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        let address = address.expect(&first).to_owned();
        Self { child, outcomes, _log: log, address, clients: [client(false), client(true)] }
    }

    /// Requests every route on both protocols and compares each outcome.
    async fn walk(&mut self, delivery: &str) {
        for http2 in [false, true] {
            let version = if http2 { "HTTP/2.0" } else { "HTTP/1.1" };
            for (method, path, status, body_bytes) in [
                (Method::GET, "/bytes/5", 200, 5),
                (Method::GET, "/bytes/3000000", 200, 3_000_000),
                (Method::GET, "/chunks/3/1000", 200, 3000),
                (Method::GET, "/length/100000", 200, 100_000),
                (Method::GET, "/trailers/10", 200, 10),
                (Method::GET, "/empty", 200, 0),
                (Method::GET, "/no-content", 204, 0),
                (Method::GET, "/not-modified", 304, 0),
                (Method::GET, "/slow/1", 200, 0),
                (Method::HEAD, "/bytes/100", 200, 0),
                (Method::GET, "/nowhere", 404, 0),
            ] {
                self.get(method.clone(), path, http2).await.unwrap();
                let outcome = self
                    .expect(&json!({
                        "method": method.as_str(), "path": path, "version": version, "status": status,
                        "end": "complete", "delivery": delivery, "body_bytes": body_bytes,
                    }))
                    .await;
                assert!(outcome["total_ms"].is_f64(), "{outcome}");
                if status < 400 {
                    self.expect(&json!({"task": format!("{method} {path}"), "ran": true})).await;
                }
            }
            assert!(self.get(Method::GET, "/error/100000", http2).await.is_err());
            self.expect(
                &json!({"path": "/error/100000", "end": "body_error", "delivery": "not_delivered", "status": 200}),
            )
            .await;
            self.expect(&json!({"task": "GET /error/100000"})).await;
            assert!(self.get(Method::GET, "/panic", http2).await.is_err());
            self.expect(
                &json!({"path": "/panic", "end": "handler_error", "delivery": "not_delivered", "status": null}),
            )
            .await;
            // Nothing tells when the request has arrived, and one that was not sent has no outcome.
            let gone = timeout(Duration::from_secs(1), self.get(Method::GET, "/slow/100000", http2));
            assert!(gone.await.is_err());
            self.expect(&json!({"path": "/slow/100000", "end": "no_response", "delivery": "not_delivered"})).await;
        }
    }

    async fn get(&self, method: Method, path: &str, http2: bool) -> Result<Bytes, String> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        let request = request.body(Empty::new()).unwrap();
        let body = self.clients[usize::from(http2)].request(request).await.map_err(|error| error.to_string())?;
        body.into_body().collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string())
    }

    async fn line(&mut self) -> Option<Value> {
        let line = timeout(PATIENCE, self.outcomes.next_line()).await.expect("a line, or the end").unwrap()?;
        Some(serde_json::from_str(&line).expect("a line is a JSON object"))
    }

    /// Checks that the next line has these fields, and returns it.
    async fn expect(&mut self, fields: &Value) -> Value {
        let line = self.line().await.expect("a line");
        for (name, value) in fields.as_object().unwrap() {
            assert_eq!(&line[name], value, "{name} of {line}");
        }
        line
    }

    async fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
    }

    async fn ends_in_order(mut self) {
        self.signal("INT").await;
        self.clients = [false, true].map(|_| Client::builder(TokioExecutor::new()).build_http());
        self.ends().await;
    }

    async fn ends(mut self) {
        let mut last = Value::Null;
        while let Some(line) = self.line().await {
            last = line;
        }
        assert_eq!(last["shutdown"]["still_running"], json!([]), "{last}");
        assert_eq!(last["shutdown"]["failed"], json!(0), "{last}");
        assert_eq!(timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code(), Some(0));
    }
}

fn program() -> PathBuf {
    example(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), "after_response")
}
