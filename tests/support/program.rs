//! Runs examples as programs, like their readers run them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode, body::Bytes, header::CONTENT_TYPE};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// Upper bound for a single step, so that a program that hangs fails its test. Far longer than any
/// step takes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Returns the path of an example's program, which cargo puts beside the folder of the running
/// test. `source` is the folder of its source file.
///
/// # Panics
///
/// Panics if cargo did not build the program, or if it is older than its source.
pub fn example(source: &Path, name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "the example `{name}` is not built; run `cargo build --workspace --examples --all-features`"
    );
    let file = source.join(name).with_extension("rs");
    let source = if file.exists() { file } else { source.join(name).join("main.rs") };
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap();
    assert!(
        changed(&program) >= changed(&source),
        "`{name}` is older than its source; run `cargo build --workspace --examples --all-features`"
    );
    program
}

/// Runs a program to its end.
pub async fn run(program: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).kill_on_drop(true).output();
    timeout(PATIENCE, output).await.expect("the program ends").unwrap()
}

/// Runs a program, which must succeed, and returns the lines that it printed.
pub async fn lines_of(program: &Path) -> Vec<String> {
    let output = run(program, &[]).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A running server program. It is killed when its test fails.
#[derive(Debug)]
pub struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Base URL of the server, without a trailing slash.
    pub url: String,
}

impl Server {
    /// Starts a server on a port that the system chooses, and waits until it listens.
    pub async fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(["--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { child, lines, url: String::new() };
        let first = server.line().await.expect("a line with the address");
        let address = first.strip_prefix("listening on http://").and_then(|rest| rest.split(',').next());
        server.url = format!("http://{}", address.expect(&first));
        server
    }

    /// Returns the next line of the program's standard output.
    pub async fn line(&mut self) -> Option<String> {
        timeout(PATIENCE, self.lines.next_line()).await.expect("a line or the end of the output").unwrap()
    }

    /// Sends a GET request.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends a POST request.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.send(Method::POST, path, body.into()).await
    }

    /// Sends a DELETE request.
    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Reply {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request =
            Request::builder().method(method).uri(format!("{}{path}", self.url)).body(Full::from(body)).unwrap();
        let reply = async {
            let (head, body) = client.request(request).await.unwrap().into_parts();
            Reply { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
        };
        timeout(PATIENCE, reply).await.expect("a response")
    }

    /// Sends a signal, such as `TERM`.
    #[cfg(unix)]
    pub async fn signal(&self, name: &str) {
        let id = self.child.id().expect("the process runs").to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
    }

    /// Waits until the program exits. Returns its exit code and the last line that it printed.
    pub async fn end(mut self) -> (Option<i32>, String) {
        let mut last = String::new();
        while let Some(line) = self.line().await {
            last = line;
        }
        (timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap().code(), last)
    }
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// Returns the body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts that the response has this status and a plain text body that contains `text`.
    #[track_caller]
    pub fn assert_refused(&self, status: StatusCode, text: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert!(!self.body.is_empty() && self.text().contains(text), "{}", self.text());
    }
}
