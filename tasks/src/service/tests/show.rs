use std::time::Duration;

use tokio::time::timeout;

use super::controlled::{Controlled, get, open, send};
use crate::{
    Status, StoreError, TaskState,
    service::{Access, Action},
};

#[tokio::test]
async fn unfinished_status_has_retry_after() {
    let tasks = Controlled::new().await;
    let service = tasks.default_service();
    let id = tasks.accept("report").await;
    let path = format!("/{id}");
    for step in ["queued", "running", "succeeded"] {
        match step {
            "running" => tasks.start(id).await,
            "succeeded" => tasks.succeed(id).await,
            _ => {}
        }
        let reply = get(&service, &path).await;
        let is_pending = step != "succeeded";
        assert_eq!((reply.status.as_u16(), reply.header("content-type")), (200, "application/json"));
        assert_eq!((reply.header("cache-control"), reply.header("x-content-type-options")), ("no-store", "nosniff"));
        assert_eq!(reply.header("retry-after"), if is_pending { "1" } else { "" });
        assert_eq!(reply.json()["state"], step);
        assert_eq!(serde_json::from_str::<Status>(&reply.text).unwrap().id, id);
    }
}

#[tokio::test]
async fn failed_task_is_200_with_class_and_message() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    tasks.fail(id, "disk <full>").await;
    let reply = get(&tasks.default_service(), &format!("/{id}")).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        (&reply.json()["error"]["class"], &reply.json()["error"]["message"]),
        (&"io".into(), &"disk <full>".into())
    );
}

#[tokio::test]
async fn unknown_is_404_evicted_is_410_store_errors_are_5xx() {
    let tasks = Controlled::new().await;
    let service = tasks.default_service();
    let unknown = "0".repeat(36);
    assert!(get(&service, &format!("/{unknown}")).await.is_problem(404));
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    tasks.succeed(id).await;
    tasks.evict_all_final().await;
    for path in [format!("/{id}"), format!("/{id}/events")] {
        assert!(get(&service, &path).await.is_problem(410), "{path}");
    }
    tasks.fail_with(|| StoreError::unavailable("10.0.0.7:5432 is gone"));
    let reply = get(&service, &format!("/{id}")).await;
    assert!(reply.is_problem(503) && reply.header("retry-after") == "1");
    assert!(!reply.text.contains("10.0.0.7"), "the source must not be sent");
    tasks.fail_with(|| StoreError::other("a bug"));
    assert!(get(&service, &format!("/{id}")).await.is_problem(500));
}

#[tokio::test]
async fn task_of_another_owner_is_unknown() {
    let tasks = Controlled::new().await;
    let id = tasks.accept_of("report", Some("ann")).await;
    let service = tasks.service().authorize(|head, _| match head.headers().get("x-user") {
        Some(user) => Access::Owner(user.to_str().unwrap_or_default().to_owned()),
        None => Access::Public,
    });
    for (user, method, path, status) in [
        ("ann", "GET", format!("/{id}"), 200),
        ("bob", "GET", format!("/{id}"), 404),
        ("bob", "GET", format!("/{id}/events"), 404),
        ("bob", "DELETE", format!("/{id}"), 404),
        ("ann", "DELETE", format!("/{id}"), 200),
    ] {
        assert_eq!(send(&service, method, &path, &[("x-user", user)]).await.status, status, "{user} {method} {path}");
    }
    assert!(get(&service, &format!("/{id}")).await.is_problem(404));
    tasks.evict_all_final().await;
    assert!(send(&service, "GET", &format!("/{id}"), &[("x-user", "bob")]).await.is_problem(404), "an evicted one too");
    assert!(send(&service, "GET", &format!("/{id}"), &[("x-user", "ann")]).await.is_problem(410));
}

#[tokio::test(start_paused = true)]
async fn waiting_request_is_answered_when_the_task_finishes() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    let (service, path) = (tasks.default_service(), format!("/{id}"));
    let wait = tokio::spawn(async move { send(&service, "GET", &path, &[("prefer", "wait=20")]).await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    tasks.advance(id, 0.5, "half").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!wait.is_finished(), "progress must not end the wait");
    tasks.succeed(id).await;
    let reply = wait.await.unwrap();
    assert_eq!((reply.json()["state"].clone(), reply.header("preference-applied")), ("succeeded".into(), "wait=20"));
    assert_eq!(reply.header("vary"), "prefer");
}

#[tokio::test(start_paused = true)]
async fn waiting_request_times_out_with_the_current_status() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.default_service().max_wait(Duration::from_secs(5));
    let before = tokio::time::Instant::now();
    let reply = send(&service, "GET", &format!("/{id}"), &[("prefer", "wait=999999999999999")]).await;
    assert_eq!((reply.json()["state"].clone(), reply.header("preference-applied")), ("queued".into(), "wait=5"));
    assert_eq!((before.elapsed(), reply.header("retry-after")), (Duration::from_secs(5), "1"));
}

#[tokio::test(start_paused = true)]
async fn request_without_a_permit_does_not_wait() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.default_service().max_streams(0);
    let path = format!("/{id}");
    let reply = timeout(Duration::ZERO, send(&service, "GET", &path, &[("prefer", "wait=9")])).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("preference-applied")), (200, ""));
}

#[tokio::test]
async fn head_is_get_without_a_body_and_without_waiting() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.default_service();
    for path in [format!("/{id}"), "/openapi.json".to_owned()] {
        let (get, head) = (get(&service, &path).await, send(&service, "HEAD", &path, &[("prefer", "wait=9")]).await);
        assert_eq!((head.status, head.text.as_str()), (get.status, ""));
        assert_eq!(head.header("content-length"), get.text.len().to_string());
        assert_eq!(head.header("content-type"), get.header("content-type"));
    }
    let service = tasks.default_service().max_streams(1);
    for _ in 0..2 {
        let head = send(&service, "HEAD", &format!("/{id}/events"), &[]).await;
        assert_eq!((head.status.as_u16(), head.header("content-type")), (200, "text/event-stream"), "holds no permit");
    }
}

#[tokio::test]
async fn default_authorization_permits_status_and_events_only() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.default_service();
    for (method, path, accept, status) in [
        ("GET", format!("/{id}"), "*/*", 200),
        ("GET", format!("/{id}/events"), "*/*", 200),
        ("GET", "/openapi.json".to_owned(), "*/*", 200),
        ("GET", "/".to_owned(), "application/json", 403),
        ("GET", "/".to_owned(), "text/html", 403),
        ("DELETE", format!("/{id}"), "*/*", 403),
    ] {
        assert_eq!(
            open(&service, method, &path, &[("accept", accept)]).await.status(),
            status,
            "{method} {path} {accept}"
        );
    }
}

#[tokio::test]
async fn callback_gets_head_and_action_and_its_panic_is_a_500() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.service().authorize(move |head, action| {
        assert!(*action != Action::List, "no list");
        assert_eq!(head.uri().path(), format!("/{id}"));
        if *action == Action::Show(id) { Access::All } else { Access::Denied }
    });
    assert_eq!(get(&service, &format!("/{id}")).await.status, 200);
    assert!(send(&service, "DELETE", &format!("/{id}"), &[]).await.is_problem(403));
    assert!(get(&service, "/").await.is_problem(500));
    assert_eq!(TaskState::Queued.as_str(), get(&service, &format!("/{id}")).await.json()["state"]);
}

#[tokio::test]
async fn denial_names_the_remedy_until_authorize_is_set() {
    let tasks = Controlled::new().await;
    let task = format!("/{}", tasks.accept("report").await);
    let denied = tasks.service().authorize(|_, _| Access::Denied);
    for (method, target, accept) in [("GET", "/", "text/html"), ("GET", "/", "*/*"), ("DELETE", &task, "*/*")] {
        for (service, is_default) in [(&tasks.default_service(), true), (&denied, false)] {
            let reply = send(service, method, target, &[("accept", accept)]).await;
            assert!(reply.is_problem(403), "{method} {target} {accept}");
            assert_eq!(reply.text.contains("`StatusService::authorize`"), is_default, "{}", reply.text);
        }
    }
}

#[tokio::test]
async fn retry_after_of_a_delayed_job_is_the_time_until_it_is_due() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let due_in = async |millis| {
        tasks.delay(id, millis).await;
        let reply = get(&tasks.default_service(), &format!("/{id}")).await;
        (reply.header("retry-after").parse::<u64>().unwrap(), reply.json()["due_at"].is_string())
    };
    assert_eq!(due_in(3_600_000).await, (3600, true));
    assert_eq!(due_in(1500).await, (2, true));
    assert_eq!(due_in(0).await, (1, true));
    tasks.start(id).await;
    assert_eq!(get(&tasks.default_service(), &format!("/{id}")).await.header("retry-after"), "1");
    assert!(get(&tasks.default_service(), &format!("/{id}")).await.json()["due_at"].is_null());
}
