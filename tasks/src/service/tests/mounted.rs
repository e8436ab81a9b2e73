use std::time::Duration;

use axum::Router;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::net::{TcpListener, TcpStream};

use super::controlled::{Controlled, request};

async fn send(address: std::net::SocketAddr, target: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = request("GET", target, &[]);
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = tokio::time::timeout(Duration::from_secs(60), response.into_body().collect())
        .await
        .unwrap()
        .unwrap()
        .to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn service_is_reachable_when_nested_in_axum() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    tasks.succeed(id).await;
    let service = tasks.service();
    let app = Router::new().route_service("/status", service.alias()).nest_service("/tasks", service);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    for (target, status, word) in [
        (format!("/tasks/{id}"), 200, "succeeded"),
        (format!("/tasks/{id}/events"), 200, "event: finished"),
        ("/tasks".to_owned(), 200, "\"tasks\":[{"),
        ("/tasks/?limit=1".to_owned(), 200, "\"tasks\":[{"),
        ("/tasks/openapi.json".to_owned(), 200, "openapi"),
        (format!("/status?task_id={id}"), 200, "completed"),
        ("/tasks/x".to_owned(), 404, "no such task"),
    ] {
        let (found, text) = send(address, &target).await;
        assert!(found == status && text.contains(word), "{target}: {found} {text}");
    }
    server.abort();
}

#[tokio::test]
async fn service_works_with_hyper_alone() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = TowerToHyperService::new(tasks.default_service());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    });
    let (status, text) = send(address, &format!("/{id}")).await;
    assert!(status == 200 && text.contains("queued"), "{status} {text}");
    server.abort();
}
