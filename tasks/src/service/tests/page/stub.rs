//! A service with the routes that the page uses, whose responses are written here.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use futures_util::{StreamExt, stream};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A request that the page has sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sent {
    /// Method, path and query, such as `GET summary`.
    pub(super) line: String,
    pub(super) body: Value,
    pub(super) authorization: String,
    pub(super) content_type: String,
    pub(super) last_event_id: String,
}

#[derive(Clone, Default)]
pub(super) struct Stub {
    pub(super) is_read_only: bool,
    /// `true` if the routes of operations are missing.
    pub(super) is_plain: bool,
    /// `true` if the client may not see the tasks of all owners.
    pub(super) is_of_owner: bool,
    pub(super) token: Option<&'static str>,
    pub(super) tasks: Arc<Mutex<Vec<Value>>>,
    pub(super) sequences: Arc<Mutex<Vec<Value>>>,
    /// `queues/{name}` and `kinds/{name}`.
    pub(super) pausable: Vec<String>,
    pub(super) paused: Arc<Mutex<BTreeSet<String>>>,
    pub(super) sent: Arc<Mutex<Vec<Sent>>>,
    pub(super) open_streams: Arc<AtomicUsize>,
}

/// Stands for 30 000 nested arrays in a response. A `Value` cannot have them, since it is dropped
/// recursively.
pub(super) const DEEP: &str = "{{deep}}";

pub(super) fn id(number: usize) -> String {
    format!("0{number:0>35}")
}

pub(super) fn task(number: usize, name: &str, state: &str) -> Value {
    let created_at = "2026-01-02T03:04:05.678Z";
    json!({"id": id(number), "name": name, "state": state, "attempt": 1, "created_at": created_at, "queue": "default"})
}

impl Stub {
    pub(super) async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stub) = (listener.local_addr().unwrap(), self.clone());
        let router = Router::new().fallback(move |request| {
            let stub = stub.clone();
            async move { stub.call(request).await }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    pub(super) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// Returns the requests that change something.
    pub(super) fn changes(&self) -> Vec<(String, Value)> {
        let sent = self.sent().into_iter().filter(|sent| !sent.line.starts_with("GET"));
        sent.map(|sent| (sent.line, sent.body)).collect()
    }

    async fn call(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        if header("accept").contains("text/html") {
            return crate::service::page::respond(self.is_read_only).map(Body::new);
        }
        let bytes = axum::body::to_bytes(body, 1024 * 1024).await.unwrap();
        let target = head.uri.path_and_query().unwrap().as_str().trim_start_matches("/tasks").trim_start_matches('/');
        let sent = Sent {
            line: format!("{} {target}", head.method),
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            authorization: header("authorization"),
            content_type: header("content-type"),
            last_event_id: header("last-event-id"),
        };
        self.sent.lock().unwrap().push(sent.clone());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let (status, value) = match self.token {
            Some(token) if sent.authorization != format!("Bearer {token}") => problem(401, "a token is needed"),
            _ if path.ends_with("/events") => return self.events(path.trim_end_matches("/events"), &sent),
            _ => self.answer(head.method.as_str(), path, &query, &sent.body),
        };
        let deep = "[".repeat(30_000) + &"]".repeat(30_000);
        let text = value.to_string().replace(&format!("\"{DEEP}\""), &deep);
        let response = Response::builder().status(status).header("content-type", "application/json");
        response.body(Body::from(text)).unwrap()
    }

    fn answer(&self, method: &str, path: &str, query: &HashMap<String, String>, body: &Value) -> (u16, Value) {
        let is_operation = matches!(method, "POST" | "PATCH") || matches!(path, "summary" | "queues" | "sequences");
        if is_operation && self.is_plain {
            return problem(404, "no such task");
        }
        if self.is_of_owner && matches!(path, "summary" | "queues" | "sequences") {
            return problem(403, "not allowed");
        }
        let segments: Vec<_> = path.split('/').collect();
        match (method, &segments[..]) {
            // More tasks have failed than a page has.
            ("GET", [""]) if query.get("limit").is_some_and(|limit| limit == "1000") && query["state"] == "failed" => {
                (200, json!({"tasks": self.list(query), "next": id(1)}))
            }
            ("GET", [""]) => (200, json!({"tasks": self.list(query)})),
            ("GET", ["summary"]) => (200, self.summary()),
            ("GET", ["queues"]) => (200, json!({"queues": self.pausable("queues"), "kinds": self.pausable("kinds")})),
            ("GET", ["sequences"]) => (200, json!({"sequences": *self.sequences.lock().unwrap()})),
            ("POST", ["sequences", "release"]) => {
                self.sequences.lock().unwrap().retain(|sequence| sequence["key"] != body["key"]);
                (200, json!({"released": 12}))
            }
            // There are always more.
            ("POST", ["bulk"]) => (200, json!({"changed": body["limit"], "remaining": true, "after": id(1)})),
            ("POST", ["kinds", "locked", _]) => problem(403, "not allowed for this kind"),
            ("POST", [path, name, verb @ ("pause" | "resume")]) => {
                let name = percent_decode_str(name).decode_utf8().unwrap();
                let key = format!("{path}/{name}");
                let mut paused = self.paused.lock().unwrap();
                if *verb == "pause" {
                    paused.insert(key)
                } else {
                    paused.remove(&key)
                };
                (200, json!({"name": name, "paused": *verb == "pause"}))
            }
            (_, [id, rest @ ..]) => self.change(method, id, rest, body),
            _ => problem(404, "no such path"),
        }
    }

    fn change(&self, method: &str, id: &str, rest: &[&str], body: &Value) -> (u16, Value) {
        let mut tasks = self.tasks.lock().unwrap();
        let Some(task) = tasks.iter_mut().find(|task| task["id"] == id) else { return problem(404, "no such task") };
        match (method, rest) {
            ("GET", []) => {}
            ("DELETE", []) => task["cancel_requested_at"] = "2026-01-02T03:05:00Z".into(),
            ("PATCH", []) => task["due_at"] = body["due_at"].clone(),
            ("POST", ["retry"]) if task["name"] == "deleted" => return problem(409, "River has deleted the job"),
            ("POST", ["retry"]) => task["state"] = "queued".into(),
            ("POST", ["discard"]) => task["state"] = "failed".into(),
            _ => return problem(405, "method not allowed"),
        }
        (200, task.clone())
    }

    fn list(&self, query: &HashMap<String, String>) -> Vec<Value> {
        let tasks = self.tasks.lock().unwrap();
        let matches = |task: &&Value| {
            query.iter().all(|(key, value)| match key.as_str() {
                "state" => value.split(',').any(|state| task["state"] == state),
                "name" | "owner" | "queue" => task[key] == value.as_str(),
                _ => true,
            })
        };
        tasks.iter().filter(matches).cloned().collect()
    }

    /// Returns a summary with 1500 failed tasks, and one group for each kind.
    fn summary(&self) -> Value {
        let group = |kind: Value| {
            let name = kind["name"].clone();
            let numbers = json!({"p50": 0.25, "p99": 90.0});
            json!({"name": name, "queue": name, "states": {"failed": 1500, "queued": 2}, "oldest_queued_seconds": 75.0,
                "wait_seconds": numbers, "run_seconds": numbers, "paused": kind["paused"]})
        };
        let groups: Vec<_> = self.pausable("kinds").into_iter().map(group).collect();
        json!({"states": {"failed": 1500, "queued": 2}, "groups": groups})
    }

    fn pausable(&self, path: &str) -> Vec<Value> {
        let paused = self.paused.lock().unwrap();
        let named = self.pausable.iter().filter_map(|key| Some((key, key.strip_prefix(path)?.strip_prefix('/')?)));
        named.map(|(key, name)| json!({"name": name, "paused": paused.contains(key)})).collect()
    }

    /// Sends a thousand progress events in ten parts, and keeps the stream open.
    fn events(&self, id: &str, sent: &Sent) -> Response {
        let tasks = self.tasks.lock().unwrap();
        let task = tasks.iter().find(|task| task["id"] == id).cloned().unwrap_or_default();
        let first = if sent.last_event_id.is_empty() { 0 } else { 1000 };
        let parts = stream::iter((first..1000).step_by(100)).then(move |start| {
            let mut task = task.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(if start == 0 { 0 } else { 110 })).await;
                let mut text = String::new();
                for number in start..start + 100 {
                    task["message"] = json!(format!("update {number}: {}", task["name"].as_str().unwrap_or_default()));
                    text += &format!("id: 1.2.{number}\nevent: progress\ndata: {task}\n\n");
                }
                Ok::<_, Infallible>(text)
            }
        });
        let open = Open(self.open_streams.clone());
        open.0.fetch_add(1, SeqCst);
        let parts = parts.chain(stream::pending()).map(move |part| {
            let _open = &open;
            part
        });
        let response = Response::builder().header("content-type", "text/event-stream");
        response.body(Body::from_stream(parts)).unwrap()
    }
}

/// Counts a stream until its connection ends.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn problem(status: u16, detail: &str) -> (u16, Value) {
    (status, json!({"type": "about:blank", "title": "problem", "status": status, "detail": detail}))
}
