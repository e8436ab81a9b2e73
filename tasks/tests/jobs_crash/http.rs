use std::{
    collections::BTreeMap,
    error::Error,
    io,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::time::timeout;

use super::program::{TIMEOUT, state_of};

/// A client that keeps its connections.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpConnector, Empty<Bytes>>,
    /// The last process of each port.
    processes: Arc<Mutex<BTreeMap<u16, u32>>>,
}

impl Http {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT / 2));
        Self { client: Client::builder(TokioExecutor::new()).build(connector), processes: Arc::default() }
    }

    /// Notes which process listens on a port, for the messages of failures.
    pub(crate) fn add_server(&self, port: u16, process_id: u32) {
        self.processes.lock().unwrap().insert(port, process_id);
    }

    /// Returns the ports of all servers so far, with the states of their processes.
    pub(crate) fn servers(&self) -> String {
        let processes = self.processes.lock().unwrap();
        let lines: Vec<_> = processes.iter().map(|(port, id)| format!("port {port}: {}", state_of(*id))).collect();
        lines.join("\n")
    }

    /// Returns an error if there is no complete response.
    pub(crate) async fn send(&self, method: Method, url: &str) -> Result<(StatusCode, Value), String> {
        let message = Request::builder().method(&method).uri(url).body(Empty::new()).unwrap();
        let request = format!("{method} {url}");
        let (head, body) = match timeout(TIMEOUT, self.client.request(message)).await {
            Ok(Ok(response)) => response.into_parts(),
            Ok(Err(error)) if is_timeout(&error) => self.hangs(&request, "no connection"),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => self.hangs(&request, "no response"),
        };
        match timeout(TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => Ok((head.status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => self.hangs(&request, "no end of the response"),
        }
    }

    fn hangs(&self, request: &str, what: &str) -> ! {
        panic!("{request}: {what} in time, at most {TIMEOUT:?}\n{}", self.servers());
    }

    /// Enqueues a job and returns its id.
    pub(crate) async fn enqueue(&self, url: &str, key: &str, millis: usize) -> String {
        self.enqueue_with(url, &format!("ms={millis}&key={key}")).await
    }

    /// Enqueues a job with this query, and returns its id.
    pub(crate) async fn enqueue_with(&self, url: &str, query: &str) -> String {
        let (code, status) = self.send(Method::POST, &format!("{url}/jobs?{query}")).await.unwrap();
        assert_eq!(code, StatusCode::ACCEPTED, "{status}");
        status["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn status(&self, url: &str, id: &str) -> Value {
        let (code, status) = self.send(Method::GET, &format!("{url}/tasks/{id}")).await.unwrap();
        assert_eq!(code, StatusCode::OK, "{status}");
        status
    }
}

/// Returns `true` if no connection was made in time.
fn is_timeout(error: &legacy::Error) -> bool {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let mut errors = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
    error.is_connect() && errors.any(|error| error.kind() == io::ErrorKind::TimedOut)
}
