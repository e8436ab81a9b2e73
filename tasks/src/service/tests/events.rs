use std::{
    future::{pending, poll_fn},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use http_body_util::BodyExt;
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

use super::controlled::{Controlled, get, open, send};
use crate::{
    Json, Record, StoreError, TaskId, Timestamp,
    record::Ending,
    service::{ResponseBody, events::EventStream, source::Changes},
    store::StoreFuture,
};

/// Returns the next chunk of a stream, or `None` at its end.
async fn chunk(body: &mut ResponseBody) -> Option<String> {
    let frame = body.frame().await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

fn events(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

fn last_id(text: &str) -> String {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap().to_owned()
}

#[tokio::test]
async fn stream_has_each_event_once_in_order_until_the_task_ends() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let response = open(&tasks.default_service(), "GET", &format!("/{id}/events"), &[]).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let mut body = response.into_body();
    let mut text = chunk(&mut body).await.unwrap();
    assert!(text.starts_with("retry: 1000\n\n"));
    tasks.start(id).await;
    text += &chunk(&mut body).await.unwrap();
    tasks.advance(id, 0.25, "a").await;
    tasks.advance(id, 0.5, "b").await;
    text += &chunk(&mut body).await.unwrap();
    tasks.succeed(id).await;
    text += &chunk(&mut body).await.unwrap();
    assert_eq!(chunk(&mut body).await, None);
    assert_eq!(events(&text), ["queued", "started", "progress", "finished"], "only the newest progress is sent");
    let data = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| data.parse::<serde_json::Value>().unwrap());
    let states: Vec<_> = data.map(|status| status["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["queued", "running", "running", "succeeded"]);
}

#[tokio::test]
async fn stream_resumes_after_the_last_event_id() {
    let tasks = Controlled::new().await;
    let service = tasks.default_service();
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    let path = format!("/{id}/events");
    let mut first = open(&service, "GET", &path, &[]).await.into_body();
    let last = last_id(&chunk(&mut first).await.unwrap());
    drop(first);
    tasks.succeed(id).await;
    let rest = send(&service, "GET", &path, &[("last-event-id", &last)]).await;
    assert_eq!(events(&rest.text), ["finished"]);
    let none = send(&service, "GET", &path, &[("last-event-id", &last_id(&rest.text))]).await;
    assert_eq!((none.status.as_u16(), none.text.as_str()), (204, ""));
    for strange in ["", "x", "99999999999.1.1", "-1.0.0", "0.0"] {
        let all = send(&service, "GET", &path, &[("last-event-id", strange)]).await;
        assert_eq!(events(&all.text), ["queued", "started", "finished"], "{strange:?} is ignored");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_stream_sends_keep_alive_comments() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.default_service().keep_alive(Duration::from_secs(7));
    let mut body = open(&service, "GET", &format!("/{id}/events"), &[]).await.into_body();
    chunk(&mut body).await.unwrap();
    for _ in 0..2 {
        let before = Instant::now();
        assert_eq!(chunk(&mut body).await.unwrap(), ": keep-alive\n\n");
        assert!(before.elapsed() >= Duration::from_secs(7));
    }
    tasks.start(id).await;
    assert_eq!(events(&chunk(&mut body).await.unwrap()), ["started"]);
}

#[tokio::test(start_paused = true)]
async fn streams_accept_every_keep_alive_interval() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(u64::MAX), Duration::MAX] {
        let service = tasks.default_service().keep_alive(interval);
        let mut body = open(&service, "GET", &format!("/{id}/events"), &[]).await.into_body();
        assert_eq!(events(&chunk(&mut body).await.unwrap()), ["queued"], "{interval:?}");
        let comment = tokio::time::timeout(Duration::from_secs(3600), chunk(&mut body)).await;
        assert_eq!(comment.is_ok(), interval < Duration::from_secs(1), "{interval:?}");
    }
}

#[tokio::test]
async fn streams_are_limited_and_release_their_permits() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let service = tasks.default_service().max_streams(100);
    let path = format!("/{id}/events");
    let mut open_streams = Vec::new();
    for _ in 0..100 {
        open_streams.push(open(&service, "GET", &path, &[]).await);
    }
    for _ in 0..1000 {
        assert!(get(&service, &path).await.is_problem(503));
    }
    assert_eq!(get(&service, &format!("/{id}")).await.status, 200, "a status needs no permit");
    open_streams.pop();
    assert_eq!(open(&service, "GET", &path, &[]).await.status(), 200);
}

#[tokio::test]
async fn ended_stream_releases_its_permit_before_it_is_dropped() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    tasks.succeed(id).await;
    let service = tasks.default_service().max_streams(1);
    let path = format!("/{id}/events");
    let mut body = open(&service, "GET", &path, &[]).await.into_body();
    while chunk(&mut body).await.is_some() {}
    assert_eq!(open(&service, "GET", &path, &[]).await.status(), 200);
    drop(body);
}

#[tokio::test]
async fn end_streams_flushes_known_events_and_ends_streams() {
    let tasks = Controlled::new().await;
    let (finished, pending) = (tasks.accept("report").await, tasks.accept("report").await);
    let service = tasks.default_service().max_streams(2);
    let open_stream = async |id| open(&service, "GET", &format!("/{id}/events"), &[]).await.into_body();
    let (mut first, mut second) = (open_stream(finished).await, open_stream(pending).await);
    for body in [&mut first, &mut second] {
        assert_eq!(events(&chunk(body).await.unwrap()), ["queued"]);
    }
    tasks.start(finished).await;
    tasks.succeed(finished).await;
    tasks.end_streams();
    assert_eq!(events(&chunk(&mut first).await.unwrap()), ["started", "finished"]);
    assert!(chunk(&mut second).await.unwrap().starts_with(": "));
    assert_eq!((chunk(&mut first).await, chunk(&mut second).await), (None, None));
    let mut later = open_stream(pending).await;
    assert_eq!(events(&chunk(&mut later).await.unwrap()), ["queued"], "permits were released");
}

#[tokio::test]
async fn stream_ends_when_its_subscription_ends() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    let mut body = open(&tasks.default_service(), "GET", &format!("/{id}/events"), &[]).await.into_body();
    chunk(&mut body).await.unwrap();
    tasks.forget(id);
    assert_eq!(chunk(&mut body).await, None);
    tasks.fail_with(|| StoreError::unavailable("gone"));
    assert!(get(&tasks.default_service(), &format!("/{id}/events")).await.is_problem(503));
}

#[tokio::test]
async fn stream_that_fails_ends_with_a_longer_retry_delay() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.fail_changes();
    let stream = send(&tasks.default_service(), "GET", &format!("/{id}/events"), &[]).await;
    assert_eq!(events(&stream.text), ["queued"]);
    assert!(
        stream.text.ends_with("retry: 10000\n: the task cannot be read, reconnect to resume\n\n"),
        "{}",
        stream.text
    );
}

#[tokio::test]
async fn waiting_request_gets_the_last_known_status_on_an_error() {
    let tasks = Controlled::new().await;
    let id = tasks.accept("report").await;
    tasks.start(id).await;
    tasks.fail_changes();
    let reply = send(&tasks.default_service(), "GET", &format!("/{id}"), &[("prefer", "wait=5")]).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["state"]), (200, &"running".into()), "{}", reply.text);
}

/// Changes of a record that are published without a notification of the future that waits.
struct Unnotified {
    record: Record,
    published: Arc<Mutex<Option<Record>>>,
}

impl Changes for Unnotified {
    fn record(&self) -> &Record {
        &self.record
    }

    fn changed(&mut self) -> StoreFuture<'_, bool> {
        let published = self.published.lock().unwrap().take();
        Box::pin(async {
            let Some(record) = published else { return pending().await };
            self.record = record;
            Ok(true)
        })
    }
}

#[tokio::test]
async fn end_streams_sends_a_record_before_its_notification_arrives() {
    let now = Timestamp::default();
    let mut record = Record::new(TaskId::generate(now).unwrap(), "report", now);
    let published = Arc::new(Mutex::new(None));
    let changes = Unnotified { record: record.clone(), published: Arc::clone(&published) };
    let (end_streams, ended) = oneshot::channel::<()>();
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let ended = Box::pin(async move { drop(ended.await) });
    let mut stream = EventStream::new(Box::new(changes), None, Duration::MAX, ended, permit);
    poll_fn(|cx| stream.poll_next(cx)).await.unwrap();
    assert!(poll_fn(|cx| Poll::Ready(stream.poll_next(cx))).await.is_pending());

    assert!(record.start(now) && record.finish(Ending::Succeeded(Json::new(&["row"]).unwrap()), now));
    *published.lock().unwrap() = Some(record);
    drop(end_streams);
    let last = poll_fn(|cx| stream.poll_next(cx)).await.unwrap();
    assert_eq!(events(str::from_utf8(&last).unwrap()), ["started", "finished"]);
    assert_eq!(poll_fn(|cx| stream.poll_next(cx)).await, None);
}
