use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{Full, StreamBody};

use super::controlled::{Controlled, Reply, get, send, send_body};
use crate::{
    OperationError, StatusService, StoreError, TaskId, TaskState,
    operation::Change,
    service::{Access, Action, routes::ROUTES},
};

const JSON: (&str, &str) = ("content-type", "application/json");
const BULK: &str = r#"{"action":"retry","filter":{"state":"failed","name":"","owner":"ann"}}"#;

async fn post(service: &StatusService, target: &str, body: impl Into<Bytes>) -> Reply {
    send_body(service, "POST", target, &[JSON], Full::new(body.into())).await
}

/// The method, the target and a valid body of each request that changes something.
fn changes(id: TaskId) -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("POST", format!("/{id}/retry"), ""),
        ("POST", format!("/{id}/discard"), ""),
        ("PATCH", format!("/{id}"), r#"{"due_at":"2026-03-01T12:30:00Z"}"#),
        ("POST", "/bulk".to_owned(), BULK),
        ("POST", "/queues/default/pause".to_owned(), ""),
        ("POST", "/queues/default/resume".to_owned(), ""),
        ("POST", "/kinds/mail%2Fsend/pause".to_owned(), ""),
        ("POST", "/kinds/mail%2Fsend/resume".to_owned(), ""),
        ("POST", "/sequences/release".to_owned(), r#"{"key":"customer:7"}"#),
    ]
}

#[tokio::test]
async fn every_change_is_tested_here() {
    let is_change = |method: &str| method != "GET" && method != "DELETE";
    let routes = ROUTES.iter().filter(|route| is_change(route.method.as_str())).count();
    assert_eq!(changes(Controlled::new().await.accept("a").await).len(), routes);
}

#[tokio::test]
async fn changes_reach_the_tasks() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    for (method, target, body) in changes(id) {
        let reply = send_body(&tasks.service(), method, &target, &[JSON], Full::new(Bytes::from(body))).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("cache-control")),
            (200, "no-store"),
            "{target}: {}",
            reply.text
        );
    }
    let due_at = "2026-03-01T12:30:00.000Z".parse().unwrap();
    let operations = tasks.take_operations();
    assert_eq!(
        operations[..3],
        ["Retry".to_owned(), "Discard".to_owned(), format!("{:?}", Change::Reschedule(due_at))]
    );
    assert!(
        operations[3].starts_with("Retry Filter") && operations[3].contains("owner: Some(\"ann\")"),
        "{operations:?}"
    );
    assert!(operations[3].contains("name: None") && operations[3].contains("[Failed]"), "{operations:?}");
    assert_eq!(
        operations[4..],
        [
            "Queue default true",
            "Queue default false",
            "Kind mail/send true",
            "Kind mail/send false",
            "Release customer:7"
        ]
    );
    let paused = post(&tasks.service(), "/kinds/mail%2Fsend/pause", "").await;
    assert_eq!(paused.json(), serde_json::json!({"name": "mail/send", "paused": true}));
    let report = post(&tasks.service(), "/bulk", BULK).await;
    assert_eq!(report.json(), serde_json::json!({"changed": 3, "remaining": false}));
}

#[tokio::test]
async fn change_without_json_is_refused_so_that_other_sites_cannot_send_forms() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let kinds = [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/plain; application/json",
    ];
    for (method, target, body) in changes(id) {
        let send = async |headers: &[(&str, &str)]| {
            send_body(&tasks.service(), method, &target, headers, Full::new(Bytes::from(body))).await
        };
        for kind in kinds {
            let reply = send(&[("content-type", kind)]).await;
            assert!(reply.is_problem(415) && reply.text.contains("application/json"), "{target} {kind}");
        }
        assert!(send(&[]).await.is_problem(415));
        assert!(send(&[JSON, ("content-type", "text/plain")]).await.is_problem(415));
        assert_eq!(tasks.take_operations(), [""; 0], "{target}");
        assert_eq!(send(&[("content-type", "Application/JSON; charset=utf-8")]).await.status, 200);
        assert_eq!(tasks.take_operations().len(), 1);
    }
}

#[tokio::test]
async fn read_only_service_refuses_every_change() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.service().read_only();
    for (method, target, body) in changes(id) {
        let reply = send_body(&service, method, &target, &[JSON], Full::new(Bytes::from(body))).await;
        assert!(reply.is_problem(403) && reply.text.contains("read-only"), "{target}");
    }
    assert_eq!(tasks.take_operations(), [""; 0]);
    for target in ["/summary", "/queues", "/sequences"] {
        assert_eq!(get(&service, target).await.status, 200);
    }
}

#[tokio::test]
async fn operations_are_denied_without_authorization_and_have_actions_of_their_own() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let recorded = seen.clone();
    let service = tasks.service().authorize(move |_, action| {
        recorded.lock().unwrap().push(*action);
        Access::Denied
    });
    let mut requests = changes(id);
    requests.extend(["/summary", "/queues", "/sequences"].map(|target| ("GET", target.to_owned(), "")));
    for (method, target, body) in requests {
        for service in [&service, &tasks.default_service()] {
            // Denied before the body is read.
            let reply = send_body(service, method, &target, &[JSON], Endless).await;
            assert!(reply.is_problem(403), "{method} {target} {body}");
        }
    }
    let expected = [
        Action::Retry(id),
        Action::Discard(id),
        Action::Reschedule(id),
        Action::Bulk,
        Action::PauseQueue,
        Action::ResumeQueue,
        Action::PauseKind,
        Action::ResumeKind,
        Action::ReleaseSequence,
        Action::Summary,
        Action::Queues,
        Action::Sequences,
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(tasks.take_operations(), [""; 0]);
}

#[tokio::test]
async fn owner_changes_only_tasks_of_their_own() {
    let tasks = Controlled::new().await;
    let (ann, bob) = (tasks.accept_of("a", Some("ann")).await, tasks.accept_of("a", Some("bob")).await);
    let service = tasks.service().authorize(|_, _| Access::Owner("bob".to_owned()));
    for (method, target, body) in &changes(ann)[..3] {
        let reply = send_body(&service, method, target, &[JSON], Full::new(Bytes::from(*body))).await;
        assert!(reply.is_problem(404), "{target}");
    }
    for (method, target, _) in &changes(ann)[4..] {
        assert!(
            send_body(&service, method, target, &[JSON], Full::new(Bytes::new())).await.is_problem(403),
            "{target}"
        );
    }
    for target in ["/summary", "/queues", "/sequences"] {
        assert!(get(&service, target).await.is_problem(403), "{target}");
    }
    let others = post(&service, "/bulk", BULK).await;
    assert_eq!(others.json(), serde_json::json!({"changed": 0, "remaining": false}), "they are those of ann");
    assert_eq!(tasks.take_operations(), [""; 0]);
    assert_eq!(post(&service, &format!("/{bob}/retry"), "").await.status, 200);
    post(&service, "/bulk", r#"{"action":"cancel","filter":{}}"#).await;
    assert!(tasks.take_operations()[1].contains("owner: Some(\"bob\")"));
    let public = tasks.service().authorize(|_, _| Access::Public);
    post(&public, "/bulk", r#"{"action":"cancel","filter":{}}"#).await;
    assert!(tasks.take_operations()[0].contains("unowned: true"));
    assert_eq!(get(&service, "/?owner=ann").await.json()["tasks"], serde_json::json!([]));
}

#[tokio::test]
async fn refusals_say_why() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    type Refusal = fn() -> OperationError;
    let refusals: [(Refusal, u16, &str); 8] = [
        (OperationError::unknown, 404, ""),
        (OperationError::not_a_job, 501, "not_a_job"),
        (OperationError::no_queue, 501, "no_queue"),
        (|| OperationError::wrong_state(TaskState::Running, Change::Retry), 409, "state"),
        (OperationError::deleted, 409, "deleted"),
        (OperationError::duplicate, 409, "duplicate"),
        (|| OperationError::invalid("too many"), 409, ""),
        (|| StoreError::unavailable("the server at 10.0.0.1 is gone").into(), 503, ""),
    ];
    for (refusal, status, reason) in refusals {
        tasks.refuse_with(refusal);
        let reply = post(&tasks.service(), &format!("/{id}/retry"), "").await;
        assert!(reply.is_problem(status), "{}", reply.text);
        assert_eq!(reply.json()["reason"].as_str().unwrap_or_default(), reason);
        assert!(!reply.text.contains("10.0.0.1"), "{}", reply.text);
    }
    tasks.close();
    assert!(post(&tasks.service(), &format!("/{id}/retry"), "").await.is_problem(503));
}

#[tokio::test]
async fn malformed_bodies_are_refused_and_change_nothing() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.service();
    let text = |text: &str| format!(r#"{{"action":"retry","filter":{{"text":"{text}"}}}}"#);
    for body in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        r#"{"action":"retry"}"#.to_owned(),
        r#"{"action":"destroy","filter":{}}"#.to_owned(),
        r#"{"action":"retry","filter":{"nmae":"a"}}"#.to_owned(),
        r#"{"action":"retry","filter":{"state":"done"}}"#.to_owned(),
        r#"{"action":"retry","filter":{"state":["done"]}}"#.to_owned(),
        r#"{"action":"retry","filter":{"state":","}}"#.to_owned(),
        r#"{"action":"retry","filter":{"river_id":"x"}}"#.to_owned(),
        r#"{"action":"retry","filter":{},"after":"1"}"#.to_owned(),
        r#"{"action":"retry","filter":{},"limit":0}"#.to_owned(),
        r#"{"action":"retry","filter":{},"limit":1001}"#.to_owned(),
        r#"{"action":"retry","filter":{},"limit":-1}"#.to_owned(),
        text(&"x".repeat(201)),
        "[".repeat(10_000),
    ] {
        assert!(post(&service, "/bulk", body.clone()).await.is_problem(400), "{body:.60}");
    }
    for body in ["", "{}", r#"{"due_at":"tomorrow"}"#, r#"{"due_at":1}"#, r#"{"due_at":"2026-03-01T12:30:00Z","x":1}"#]
    {
        let reply = send_body(&service, "PATCH", &format!("/{id}"), &[JSON], Full::new(Bytes::from(body))).await;
        assert!(reply.is_problem(400), "{body}");
    }
    assert!(post(&service, "/bulk", &b"{\"action\":\"\xff\"}"[..]).await.is_problem(400), "not UTF-8");
    assert!(post(&service, "/bulk", vec![b' '; 64 * 1024 + 1]).await.is_problem(413));
    assert!(post(&service, "/bulk", vec![b' '; 64 * 1024]).await.is_problem(400));
    assert!(send_body(&service, "POST", "/bulk", &[JSON], Endless).await.is_problem(413));
    assert_eq!(tasks.take_operations(), [""; 0]);
    for hostile in ["%", "_", "\\\\", "'; DROP TABLE river_job; --", "\\u0000", "../", "\\\"", "\u{1f4a3}"] {
        assert_eq!(post(&service, "/bulk", text(hostile)).await.status, 200, "{hostile}");
    }
    assert_eq!(tasks.take_operations().len(), 8);
}

/// A body that has always one more kilobyte.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b' '; 1024])))))
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_fails_or_does_not_arrive_is_400() {
    let tasks = Controlled::new().await;
    let never = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let begun = tokio::time::Instant::now();
    assert!(send_body(&tasks.service(), "POST", "/bulk", &[JSON], never).await.is_problem(400));
    assert_eq!(begun.elapsed().as_secs(), 10);
    let error = Err::<Frame<Bytes>, _>(std::io::Error::other("reset"));
    let fails = StreamBody::new(futures_util::stream::iter([error]));
    assert!(send_body(&tasks.service(), "POST", "/bulk", &[JSON], fails).await.is_problem(400));
}

#[tokio::test]
async fn names_in_paths_are_decoded_once() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    for (path, name) in
        [("a", "a"), ("a%2Fb", "a/b"), ("%2e%2e%2f", "../"), ("%2541", "%41"), ("%00", "\0"), ("a+b", "a+b")]
    {
        assert_eq!(post(&service, &format!("/queues/{path}/pause"), "").await.json()["name"], name, "{path}");
    }
    for path in ["%ff", "", "a/b", "a/"] {
        assert!(post(&service, &format!("/queues/{path}/pause"), "").await.is_problem(404), "{path:?}");
    }
    let long = "x".repeat(60_000);
    assert_eq!(post(&service, &format!("/kinds/{long}/pause"), "").await.status, 200, "the queue decides");
}

#[tokio::test]
async fn other_methods_are_405_with_the_allowed_ones() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    for (method, target, allow) in [
        ("GET", "/bulk".to_owned(), "POST"),
        ("DELETE", "/summary".to_owned(), "GET, HEAD"),
        ("POST", "/queues".to_owned(), "GET, HEAD"),
        ("PUT", format!("/{id}/retry"), "POST"),
        ("OPTIONS", format!("/{id}"), "GET, HEAD, DELETE, PATCH"),
        ("GET", "/kinds/a/pause".to_owned(), "POST"),
    ] {
        let reply = send(&tasks.service(), method, &target, &[JSON]).await;
        assert_eq!((reply.is_problem(405), reply.header("allow")), (true, allow), "{method} {target}");
    }
    let head = send(&tasks.service(), "HEAD", "/summary", &[]).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn bulk_operation_has_a_limit_and_the_fields_of_a_list() {
    let tasks = Controlled::new().await;
    for (fields, expected) in [
        ("", "limit: 1000"),
        (r#","limit":null"#, "limit: 1000"),
        (r#","limit":1"#, "limit: 1 }"),
        (r#","limit":1000"#, "limit: 1000 }"),
    ] {
        let body = format!(r#"{{"action":"cancel","filter":{{"river_id":17}}{fields}}}"#);
        assert_eq!(post(&tasks.service(), "/bulk", body).await.status, 200, "{fields}");
        let operations = tasks.take_operations();
        assert!(operations[0].contains(expected) && operations[0].contains("river_id: Some(17)"), "{operations:?}");
    }
}

#[tokio::test]
async fn requests_that_wait_for_a_summary_leave_the_permits_to_lists() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let permits: Vec<_> = std::iter::from_fn(|| service.config.limits.try_acquire_list()).collect();
    assert_eq!(permits.len(), 16);
    assert_eq!(get(&service, "/summary").await.status, 200);
}

#[tokio::test]
async fn one_bulk_operation_runs_at_a_time() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let owner = || Access::Owner("ann".to_owned());
    let of_owner = service.clone().authorize(move |_, _| owner());
    for (access, busy, other) in [(Access::All, &service, &of_owner), (owner(), &of_owner, &service)] {
        let permit = service.config.limits.try_acquire_bulk(&access).unwrap();
        let reply = post(busy, "/bulk", BULK).await;
        assert_eq!((reply.is_problem(503), reply.header("retry-after")), (true, "1"));
        assert_eq!(post(other, "/bulk", BULK).await.status, 200, "owners and operators do not wait for each other");
        drop(permit);
        assert_eq!(post(busy, "/bulk", BULK).await.status, 200);
    }
}

#[tokio::test]
async fn summary_and_queues_are_json() {
    let tasks = Controlled::new().await;
    for _ in 0..3 {
        tasks.accept("report").await;
    }
    let summary = get(&tasks.service(), "/summary").await.json();
    assert_eq!((&summary["states"]["queued"], &summary["states"]["failed"]), (&3.into(), &0.into()));
    assert_eq!((&summary["groups"][0]["name"], &summary["groups"][0]["paused"]), (&"report".into(), &false.into()));
    assert_eq!((&summary["counted"], &summary["is_complete"]), (&3.into(), &true.into()));
    let queues = get(&tasks.service(), "/queues").await.json();
    assert_eq!(queues["queues"], serde_json::json!([{"name": "default", "paused": false}]));
}

#[tokio::test]
async fn sequences_are_listed_and_released_by_key() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let list = get(&service, "/sequences").await.json();
    let expected =
        serde_json::json!({"key": "customer:7", "held_by": null, "since": "1970-01-01T00:00:00.000Z", "waiting": 2});
    assert_eq!(list["sequences"], serde_json::json!([expected]));
    for (key, released) in [("customer:7", 1), ("%_\"'; --", 0)] {
        let reply = post(&service, "/sequences/release", serde_json::json!({ "key": key }).to_string()).await;
        assert_eq!(reply.json(), serde_json::json!({ "released": released }), "{key}");
    }
    for body in ["", "{}", r#"{"key":7}"#, r#"{"key":"a","more":1}"#] {
        assert!(post(&service, "/sequences/release", body).await.is_problem(400), "{body}");
    }
}

#[tokio::test]
async fn list_is_filtered_by_text_and_owner_and_links_keep_the_filter() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let mut ids = Vec::new();
    for name in ["100% done", "100 done", "a_b", "axb", "\\"] {
        ids.push(tasks.accept_of(name, Some("ann")).await);
    }
    let names = async |query: &str| {
        let list = get(&service, &format!("/?{query}")).await.json();
        list["tasks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|task| task["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("text=100%25").await, ["100% done"]);
    assert_eq!(names("text=A_B").await, ["a_b"]);
    assert_eq!(names("text=%5C").await, ["\\"]);
    assert_eq!(names(&format!("text={}", &ids[1].to_string()[..30])).await, ["100 done"]);
    assert_eq!(names("text=done&owner=bob").await, [""; 0]);
    assert_eq!(names("queue=default").await, [""; 0]);
    assert_eq!(names("river_id=17").await, [""; 0], "no job is in memory");
    let reply = get(&service, "/?text=done&owner=ann&limit=1").await;
    assert!(reply.header("link").contains("owner=ann&text=done"), "{}", reply.header("link"));
    for bad in
        ["text=a&text=b", "owner=a&owner=b", "river_id=x", "river_id=99999999999999999999", "river_id=1&river_id=1"]
    {
        assert!(get(&service, &format!("/?{bad}")).await.is_problem(400), "{bad}");
    }
    assert!(get(&service, &format!("/?text={}", "x".repeat(201))).await.is_problem(400));
}
