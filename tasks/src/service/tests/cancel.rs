use super::controlled::{Controlled, send};

#[tokio::test]
async fn cancel_is_202_while_running_and_200_once_finished() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    let running = tasks.accept("report").await;
    tasks.start(running).await;
    for _ in 0..2 {
        let reply = send(&service, "DELETE", &format!("/{running}"), &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (202, "1"));
        assert!(reply.json()["cancel_requested_at"].is_string());
    }
    let queued = tasks.accept("report").await;
    for _ in 0..2 {
        let reply = send(&service, "DELETE", &format!("/{queued}"), &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (200, ""));
        assert_eq!((&reply.json()["state"], &reply.json()["reason"]), (&"cancelled".into(), &"requested".into()));
    }
    assert!(send(&service, "DELETE", &format!("/{}", "0".repeat(36)), &[]).await.is_problem(404));
}

#[tokio::test]
async fn read_only_service_does_not_cancel() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.service().read_only();
    assert!(send(&service, "DELETE", &format!("/{id}"), &[]).await.is_problem(403));
    let reply = send(&service, "GET", &format!("/{id}"), &[]).await;
    assert_eq!(
        (&reply.json()["state"], &reply.json()["cancel_requested_at"]),
        (&"queued".into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn closed_tasks_can_be_read_but_not_cancelled() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.close();
    let service = tasks.service();
    assert!(send(&service, "DELETE", &format!("/{id}"), &[]).await.is_problem(503));
    assert_eq!(send(&service, "GET", &format!("/{id}"), &[]).await.status, 200);
}

#[tokio::test]
async fn other_methods_are_405_with_allow() {
    let tasks = Controlled::new().await;
    let service = tasks.service();
    for (method, path, allow) in [
        ("POST", "/", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("PUT", "/00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0", "GET, HEAD, DELETE, PATCH"),
        ("OPTIONS", "/x/events", "GET, HEAD"),
        ("PATCH", "/openapi.json", "GET, HEAD"),
        ("FOO", "/", "GET, HEAD"),
    ] {
        let reply = send(&service, method, path, &[]).await;
        assert!(reply.is_problem(405), "{method} {path}");
        assert_eq!(reply.header("allow"), allow);
    }
}
