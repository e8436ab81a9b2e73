use std::time::Duration;

use http_body_util::BodyExt;
use tokio::time::Instant;

use super::rig::{Rig, get, open, send};
use crate::{StoreError, service::ResponseBody};

/// The next part of a stream; `None` at its end.
async fn part(body: &mut ResponseBody) -> Option<String> {
    let frame = body.frame().await?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

fn events(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

fn last_id(text: &str) -> String {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap().to_owned()
}

/// F10
#[tokio::test]
async fn a_stream_tells_each_milestone_once_in_order_and_ends_with_the_task() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    let response = open(&rig.closed_service(), "GET", &format!("/{id}/events"), &[]).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let mut body = response.into_body();
    let mut text = part(&mut body).await.unwrap();
    assert!(text.starts_with("retry: 1000\n\n"));
    rig.start(id).await;
    text += &part(&mut body).await.unwrap();
    rig.advance(id, 0.25, "a").await;
    rig.advance(id, 0.5, "b").await;
    text += &part(&mut body).await.unwrap();
    rig.succeed(id).await;
    text += &part(&mut body).await.unwrap();
    assert_eq!(part(&mut body).await, None);
    assert_eq!(events(&text), ["queued", "started", "progress", "finished"], "of news that nobody saw the newest");
    let data = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| data.parse::<serde_json::Value>().unwrap());
    let states: Vec<_> = data.map(|status| status["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["queued", "running", "running", "succeeded"]);
}

#[tokio::test]
async fn a_stream_goes_on_behind_what_was_told_and_is_204_once_that_was_all() {
    let rig = Rig::new().await;
    let service = rig.closed_service();
    let id = rig.accept("report").await;
    rig.start(id).await;
    let path = format!("/{id}/events");
    let mut first = open(&service, "GET", &path, &[]).await.into_body();
    let told = last_id(&part(&mut first).await.unwrap());
    drop(first);
    rig.succeed(id).await;
    let rest = send(&service, "GET", &path, &[("last-event-id", &told)]).await;
    assert_eq!(events(&rest.text), ["finished"]);
    let none = send(&service, "GET", &path, &[("last-event-id", &last_id(&rest.text))]).await;
    assert_eq!((none.status.as_u16(), none.text.as_str()), (204, ""));
    for strange in ["", "x", "99999999999.1.1", "-1.0.0", "0.0"] {
        let all = send(&service, "GET", &path, &[("last-event-id", strange)]).await;
        assert_eq!(events(&all.text), ["queued", "started", "finished"], "{strange:?} is as none");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_lives() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    let service = rig.closed_service().keep_alive(Duration::from_secs(7));
    let mut body = open(&service, "GET", &format!("/{id}/events"), &[]).await.into_body();
    part(&mut body).await.unwrap();
    for _ in 0..2 {
        let before = Instant::now();
        assert_eq!(part(&mut body).await.unwrap(), ": keep-alive\n\n");
        assert!(before.elapsed() >= Duration::from_secs(7));
    }
    rig.start(id).await;
    assert_eq!(events(&part(&mut body).await.unwrap()), ["started"]);
}

#[tokio::test]
async fn streams_that_nobody_reads_are_bounded_and_their_places_come_back() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    let service = rig.closed_service().max_streams(100);
    let path = format!("/{id}/events");
    let mut open_streams = Vec::new();
    for _ in 0..100 {
        open_streams.push(open(&service, "GET", &path, &[]).await);
    }
    for _ in 0..1000 {
        assert!(get(&service, &path).await.is_problem(503));
    }
    assert_eq!(get(&service, &format!("/{id}")).await.status, 200, "a status needs no place");
    open_streams.pop();
    assert_eq!(open(&service, "GET", &path, &[]).await.status(), 200);
}

#[tokio::test]
async fn a_stream_that_has_ended_gives_its_place_back_before_the_body_is_dropped() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    rig.start(id).await;
    rig.succeed(id).await;
    let service = rig.closed_service().max_streams(1);
    let path = format!("/{id}/events");
    let mut body = open(&service, "GET", &path, &[]).await.into_body();
    while part(&mut body).await.is_some() {}
    assert_eq!(open(&service, "GET", &path, &[]).await.status(), 200);
    drop(body);
}

#[tokio::test]
async fn streams_that_are_ended_tell_what_is_known_and_end_without_an_end_of_the_task() {
    let rig = Rig::new().await;
    let (over, pending) = (rig.accept("report").await, rig.accept("report").await);
    let service = rig.closed_service().max_streams(2);
    let open_stream = async |id| open(&service, "GET", &format!("/{id}/events"), &[]).await.into_body();
    let (mut first, mut second) = (open_stream(over).await, open_stream(pending).await);
    for body in [&mut first, &mut second] {
        assert_eq!(events(&part(body).await.unwrap()), ["queued"]);
    }
    rig.start(over).await;
    rig.succeed(over).await;
    rig.end_streams();
    assert_eq!(events(&part(&mut first).await.unwrap()), ["started", "finished"]);
    assert!(part(&mut second).await.unwrap().starts_with(": "));
    assert_eq!((part(&mut first).await, part(&mut second).await), (None, None));
    let mut later = open_stream(pending).await;
    assert_eq!(events(&part(&mut later).await.unwrap()), ["queued"], "and places have come back");
}

#[tokio::test]
async fn a_stream_whose_task_nobody_watches_any_more_ends_so_that_the_client_comes_back() {
    let rig = Rig::new().await;
    let id = rig.accept("report").await;
    let mut body = open(&rig.closed_service(), "GET", &format!("/{id}/events"), &[]).await.into_body();
    part(&mut body).await.unwrap();
    rig.forget(id);
    assert_eq!(part(&mut body).await, None);
    rig.fail_with(|| StoreError::unavailable("gone"));
    assert!(get(&rig.closed_service(), &format!("/{id}/events")).await.is_problem(503));
}
