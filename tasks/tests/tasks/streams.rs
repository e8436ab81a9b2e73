//! Event streams and the shutdown of the server.

use std::future::IntoFuture;

use axum::Router;
use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tower_offload_tasks::{TaskState, Tasks};

use super::{
    http::{Client, part, rest},
    support::{LONG, SHORT, background, hold, in_memory, record},
};

struct Server {
    client: Client,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

async fn serve(tasks: &Tasks) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest_service("/tasks", tasks.service());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
    let ended = tokio::spawn(async move { server.into_future().await.unwrap() });
    Server { client: Client::of(address), stop, ended }
}

#[tokio::test]
async fn graceful_shutdown_does_not_wait_for_ended_streams() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let server = serve(&tasks).await;
    let target = format!("/tasks/{}/events", held.id);
    let mut stream = server.client.open("GET", &target, &[]).await.unwrap().into_body();
    assert!(part(&mut stream).await.unwrap().starts_with("retry: 1000\n\n"));

    drop(server.stop);
    tasks.end_streams();
    let last = rest(&mut stream).await;
    assert!(last.starts_with(": ") && !last.contains("event:"), "a comment without an event: {last}");
    timeout(LONG, server.ended).await.expect("the server waits for a stream").unwrap();
    assert_eq!(record(&tasks, held.id).await.state, TaskState::Running);

    // A later stream has the known events and then ends.
    let server = serve(&tasks).await;
    let mut stream = server.client.open("GET", &target, &[]).await.unwrap().into_body();
    let text = rest(&mut stream).await;
    assert!(text.contains("event: started"), "{text}");
    assert!(
        tasks.track("report").spawn_blocking(&background, |_| super::support::done()).await.is_ok(),
        "tasks are still accepted"
    );
}

/// The grace period is longer than any test.
#[tokio::test]
async fn serve_shuts_down_at_once_although_a_stream_is_open() {
    let (tasks, background) = (in_memory(), background());
    let held = hold(&tasks, &background).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::of(listener.local_addr().unwrap());
    let app = Router::new().nest_service("/tasks", tasks.service());
    let (stop, stopped) = oneshot::channel::<()>();
    let signal = tasks.end_streams_on(async { drop(stopped.await) });
    let server = tower_offload::axum::serve(listener, app).shutdown(signal, 10 * LONG, None);
    let server = tokio::spawn(server.into_future());
    let target = format!("/tasks/{}/events", held.id);
    let mut stream = client.open("GET", &target, &[]).await.unwrap().into_body();
    assert!(part(&mut stream).await.unwrap().contains("event: started"));

    drop(stop);
    assert!(rest(&mut stream).await.starts_with(": "), "a comment says why the stream ends");
    let report = timeout(LONG, server).await.expect("the server waits for the stream").unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(record(&tasks, held.id).await.state, TaskState::Running);
}

#[tokio::test]
async fn shutdown_ends_streams_and_sends_known_final_events() {
    let (tasks, background) = (in_memory(), background());
    let (held, other) = (hold(&tasks, &background).await, hold(&tasks, &background).await);
    let server = serve(&tasks).await;
    let open = async |id| {
        let target = format!("/tasks/{id}/events");
        server.client.open("GET", &target, &[]).await.unwrap().into_body()
    };
    let (mut of_held, mut of_other) = (open(held.id).await, open(other.id).await);
    let id = other.id;
    other.release();
    super::support::ended(&tasks, id).await;
    assert!(!tasks.shutdown(SHORT).await.is_clean());

    let (first, second) = (rest(&mut of_held).await, rest(&mut of_other).await);
    assert!(!first.contains("event: finished") && second.contains("event: finished"), "{first}\n{second}");
    drop(server.stop);
    timeout(LONG, server.ended).await.expect("the server waits for a stream").unwrap();
    assert_eq!(record(&tasks, held.id).await.state, TaskState::Running);
}
