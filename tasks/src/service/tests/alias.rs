use super::controlled::{Controlled, send};
use crate::{StoreError, service::Access};

#[tokio::test]
async fn states_are_running_completed_failed_or_404() {
    let tasks = Controlled::new().await;
    let alias = tasks.default_service().alias();
    let (id, other) = (tasks.accept("a").await, tasks.accept("b").await);
    let status = async |id| send(&alias, "GET", &format!("/status?task_id={id}"), &[]).await.json()["status"].clone();
    assert_eq!(status(id).await, "running");
    tasks.start(id).await;
    tasks.start(other).await;
    assert_eq!(status(id).await, "running");
    tasks.succeed(id).await;
    tasks.fail(other, "no").await;
    assert_eq!((status(id).await, status(other).await), ("completed".into(), "failed".into()));
    let reply = send(&alias, "GET", &format!("/?x=1&task_id={id}"), &[]).await;
    assert_eq!((&reply.json()["task_id"], &reply.json()["result"][0]), (&id.to_string().into(), &"row".into()));
    assert_eq!(reply.header("cache-control"), "no-store");
    for (method, target, status) in [
        ("GET", "/status?task_id=1", 404),
        ("GET", "/status?task_id=000000000000000000000000000000000000", 404),
        ("GET", "/status", 400),
        ("GET", "/status?task_id=%", 400),
        ("GET", &format!("/status?task_id={id}&task_id={other}"), 400),
        ("GET", &format!("/status?task_id={id}&task_id={id}"), 400),
        ("GET", &format!("/status?task_id={id}&x=1&task%5Fid="), 400),
        ("POST", "/status?task_id=1", 405),
    ] {
        assert!(send(&alias, method, target, &[]).await.is_problem(status), "{method} {target}");
    }
    assert_eq!(send(&alias, "HEAD", &format!("/?task_id={id}"), &[]).await.text, "");
}

#[tokio::test]
async fn authorization_is_that_of_the_service() {
    let tasks = Controlled::new().await;
    let id = tasks.accept_of("a", Some("ann")).await;
    let target = format!("/?task_id={id}");
    assert!(send(&tasks.default_service().alias(), "GET", &target, &[]).await.is_problem(404));
    assert_eq!(send(&tasks.service().alias(), "GET", &target, &[]).await.status, 200);
    let denied = tasks.service().authorize(|_, _| Access::Denied).alias();
    assert!(send(&denied, "GET", &target, &[]).await.is_problem(403));
    tasks.fail_with(|| StoreError::unavailable("gone"));
    assert!(send(&tasks.service().alias(), "GET", &target, &[]).await.is_problem(503));
}
