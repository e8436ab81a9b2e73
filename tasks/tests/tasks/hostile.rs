//! Malicious clients, over real connections.

use std::{fs, net::SocketAddr};

use axum::{Router, http::HeaderMap};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_offload_tasks::{SqlStore, TaskId, Tasks, service::Access};
use tower_offload_tests::eventually;

use super::{
    databases::OnServer,
    http::{Client, Reply, serve},
    sqlite_store::Folder,
    support::{background, done, ended, hold, in_memory},
};

async fn site(tasks: &Tasks) -> Client {
    let service = tasks.service().authorize(|_, _| Access::All);
    serve(Router::new().route_service("/status", service.alias()).nest_service("/tasks", service)).await
}

/// Sends bytes and returns everything that the server sends until it closes the connection.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await; // the server may have closed the connection
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8_lossy(&response).into_owned()
}

fn request(target: &[u8], rest: &str) -> Vec<u8> {
    [b"GET ", target, b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", rest.as_bytes(), b"\r\n"].concat()
}

#[tokio::test]
async fn malformed_and_long_targets_are_rejected() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let client = site(&tasks).await;
    let long = "x".repeat(70_000);
    let id = held.id;
    for (target, statuses) in [
        (b"/tasks/\xff\xfe".to_vec(), &[400, 404][..]),
        (b"/tasks/%ff%fe".to_vec(), &[404]),
        (b"/tasks/%00".to_vec(), &[404]),
        (b"/tasks/../tasks/".to_vec(), &[404]),
        (b"/tasks?name=\xc3\x28".to_vec(), &[400]),
        (b"/tasks?name=%c3%28".to_vec(), &[400]),
        (b"/status?task_id=%ff".to_vec(), &[400]),
        (b"/status?task_id=\xff".to_vec(), &[400, 404]),
        (format!("/tasks/{long}").into_bytes(), &[404, 414, 431]),
        (format!("/tasks?name={long}").into_bytes(), &[400, 414, 431]),
        (format!("/tasks/{id}?{}", &long[..60_000]).into_bytes(), &[200, 414, 431]),
        (format!("/tasks?{}", "name=a&".repeat(8000)).into_bytes(), &[400]),
        (format!("/tasks?state={}", "queued,".repeat(8000)).into_bytes(), &[200]),
    ] {
        let response = raw(client.address(), &request(&target, "")).await;
        let shown = String::from_utf8_lossy(&target[..target.len().min(40)]).into_owned();
        let status = response.split(' ').nth(1).unwrap_or("none").parse::<u16>();
        assert!(status.is_ok_and(|status| statuses.contains(&status)), "{shown}: {response:.200}");
    }
    assert_eq!(client.get(&format!("/tasks/{id}")).await.status, 200);
}

#[tokio::test]
async fn large_bodies_and_malformed_headers_get_a_response() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let client = site(&tasks).await;
    let target = format!("/tasks/{}", held.id).into_bytes();
    let endless = request(&target, "content-length: 1000000000000\r\n");
    let response = raw(client.address(), &[&endless[..], &[b'x'; 100_000]].concat()).await;
    assert!(
        response.starts_with("HTTP/1.1 200") || response.is_empty(),
        "neither a response nor a reset: {response:.200}"
    );
    let response = raw(client.address(), &endless).await;
    assert!(response.starts_with("HTTP/1.1 200"), "the response waits for the body: {response:.200}");

    let long = format!("prefer: {}", "wait=".repeat(20_000));
    for field in ["prefer: return=\"\\", "last-event-id: \u{e9}\u{0}", "accept: ;;,q=", &long] {
        let response = raw(client.address(), &request(&target, &format!("{field}\r\n"))).await;
        let status = response.split(' ').nth(1).unwrap_or_default();
        assert!(["200", "400", "431"].contains(&status), "{field:.40}: {response:.100}");
    }
    assert_eq!(client.get(&format!("/tasks/{}", held.id)).await.status, 200);
}

/// Returns everything that could distinguish two responses.
fn without_date(reply: Reply) -> (u16, HeaderMap, String) {
    let mut headers = reply.headers;
    headers.remove("date");
    (reply.status.as_u16(), headers, reply.text)
}

#[tokio::test]
async fn task_of_another_owner_is_indistinguishable_from_unknown() {
    let (tasks, background) = (in_memory(), background());
    let theirs = tasks.track("report").owner("ann").spawn_blocking(&background, |_| done()).await.unwrap().id();
    ended(&tasks, theirs).await;
    let service = tasks.service().authorize(|_, _| Access::Owner("bob".to_owned()));
    let client = serve(Router::new().route_service("/status", service.alias()).nest_service("/tasks", service)).await;
    for _ in 0..200 {
        let mut guess = *theirs.as_bytes(); // the first bytes are the time of acceptance, which an attacker may know
        getrandom::fill(&mut guess[6..]).unwrap();
        let guess = TaskId::from_bytes(guess);
        for (method, before, after) in [
            ("GET", "/tasks/", ""),
            ("GET", "/tasks/", "/events"),
            ("DELETE", "/tasks/", ""),
            ("GET", "/status?task_id=", ""),
        ] {
            let guessed = client.send(method, &format!("{before}{guess}{after}"), &[]).await;
            let known = client.send(method, &format!("{before}{theirs}{after}"), &[]).await;
            assert_eq!(guessed.status, 404);
            assert_eq!(without_date(guessed), without_date(known), "{method} {before}{after}");
        }
    }
    assert_eq!(client.get("/tasks").await.json()["tasks"], serde_json::json!([]));
}

/// Names are not interpreted as SQL or as markup.
async fn check_names(url: &str) {
    let tasks = Tasks::new(SqlStore::open(url).await.unwrap());
    let (background, client) = (background(), site(&tasks).await);
    let names =
        ["'; DROP TABLE tower_offload_task; --", "\" OR \"\"=\"", "$1", "%", "<script>alert(1)</script>", "?", "\\'"];
    for name in names {
        let work = move |_| Err::<(), _>(name);
        let _ = tasks.track(name).owner(name).spawn_blocking(&background, work).await.unwrap();
    }
    for name in names {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let reply = client.get(&format!("/tasks?name={encoded}")).await;
        assert_eq!(reply.header("content-type"), "application/json");
        let found = reply.json()["tasks"].as_array().unwrap().clone();
        assert_eq!((found.len(), &found[0]["name"]), (1, &name.into()));
        let id = format!("/tasks/{encoded}");
        assert_eq!(client.get(&id).await.status, 404, "a name is not an id");
    }
    tasks.shutdown(super::support::LONG).await;
}

#[tokio::test]
async fn names_with_sql_and_markup_are_stored_as_text() {
    let folder = Folder::new();
    check_names(&format!("sqlite:{}", folder.file().display())).await;
    if let Some(server) = OnServer::fresh().await {
        check_names(&server.url()).await;
    }
}

/// Returns the number of connections that fit into the file limit of this process, which has both
/// ends of each.
fn connections() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    (files.unwrap_or(1024_usize).saturating_sub(400) / 2).min(3000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_do_not_block_others() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let target = format!("/tasks/{}/events", held.id);
    let count = connections();
    let client = serve(Router::new().nest_service("/tasks", tasks.service().max_streams(count / 2))).await;
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(client.address()).await.unwrap();
        stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        clients.push(stream);
    }
    let is_rejected = async || client.open("GET", &target, &[]).await.unwrap().status() == 503;
    eventually("all streams are open", async || is_rejected().await).await;
    assert_eq!(client.get(&format!("/tasks/{}", held.id)).await.status, 200, "a status needs no permit");
    let id = held.id;
    held.release(); // sends an event to all streams
    ended(&tasks, id).await;
    drop(clients);
    eventually("the streams have ended", async || !is_rejected().await).await;
}
