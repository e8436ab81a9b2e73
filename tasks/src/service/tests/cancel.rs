use super::rig::{Rig, send};

#[tokio::test]
async fn a_cancel_is_202_while_the_task_runs_and_200_once_it_is_over_however_often() {
    let rig = Rig::new().await;
    let service = rig.service();
    let running = rig.accept("report").await;
    rig.start(running).await;
    for _ in 0..2 {
        let reply = send(&service, "DELETE", &format!("/{running}"), &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (202, "1"));
        assert!(reply.json()["cancel_requested_at"].is_string());
    }
    let queued = rig.accept("report").await;
    for _ in 0..2 {
        let reply = send(&service, "DELETE", &format!("/{queued}"), &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (200, ""));
        assert_eq!((&reply.json()["state"], &reply.json()["reason"]), (&"cancelled".into(), &"requested".into()));
    }
    assert!(send(&service, "DELETE", &format!("/{}", "0".repeat(36)), &[]).await.is_problem(404));
}

/// F12
#[tokio::test]
async fn a_service_that_is_read_only_cancels_nothing() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    let service = rig.service().read_only();
    assert!(send(&service, "DELETE", &format!("/{id}"), &[]).await.is_problem(403));
    let reply = send(&service, "GET", &format!("/{id}"), &[]).await;
    assert_eq!(
        (&reply.json()["state"], &reply.json()["cancel_requested_at"]),
        (&"queued".into(), &serde_json::Value::Null)
    );
}

/// F13
#[tokio::test]
async fn once_the_tasks_are_closed_a_cancel_is_503_and_a_status_can_still_be_read() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    rig.close();
    let service = rig.service();
    assert!(send(&service, "DELETE", &format!("/{id}"), &[]).await.is_problem(503));
    assert_eq!(send(&service, "GET", &format!("/{id}"), &[]).await.status, 200);
}

#[tokio::test]
async fn another_method_is_405_and_says_which_there_are() {
    let rig = Rig::new().await;
    let service = rig.service();
    for (method, path, allow) in [
        ("POST", "/", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("PUT", "/00y8j7g1z0b3t4kf6n2vqwhx9m5c7d1e8pr0", "GET, HEAD, DELETE"),
        ("OPTIONS", "/x/events", "GET, HEAD"),
        ("PATCH", "/openapi.json", "GET, HEAD"),
        ("FOO", "/", "GET, HEAD"),
    ] {
        let reply = send(&service, method, path, &[]).await;
        assert!(reply.is_problem(405), "{method} {path}");
        assert_eq!(reply.header("allow"), allow);
    }
}
