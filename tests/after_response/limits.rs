//! Limits of the background, shutdown, and isolation of requests from background work.

use std::time::Duration;

use http::{Request, StatusCode};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, OffloadLayer, ThreadPool, after_response::End};

use crate::support::{
    LONG, Log, after_shutdown, exchange, handle, hold, layer, logging, on_no_thread, on_threads, outcome_of, panics,
    responded,
};

#[tokio::test]
async fn full_background_rejects_at_registration() {
    let (background, log) = (on_threads(1).max_awaiting_response(1).build(), Log::default());
    let mut outcome = None;
    let first = responded(&background, |after| drop(after.task("mail").spawn_blocking(|| ()).unwrap())).await;
    exchange(&background, 200, End::Complete, |after| {
        after.hook(|_| ()); // needs no permit
        let refused = after.spawn_blocking(|| panics("ran")).unwrap_err();
        assert!(refused.is_full() && !refused.is_closed() && !refused.is_untracked());
        let refused = after.task("mail").replace().spawn(async { panics("ran") }).unwrap_err();
        assert_eq!(refused.to_string(), "task rejected");
        assert!(std::error::Error::source(&refused).is_some());
        outcome = Some(outcome_of(after));
    })
    .await;
    assert!(outcome.unwrap().await.unwrap().is_success());
    assert_eq!((background.stats().rejected, background.stats().awaiting_response), (2, 1));
    drop(first);
    while background.stats().completed == 0 {
        tokio::task::yield_now().await;
    }
    exchange(&background, 200, End::Complete, |after| drop(after.spawn_blocking(log.adds("there is room")).unwrap()))
        .await;
    assert_eq!(after_shutdown(&background).await.completed, 2);
    assert_eq!(log.entries(), ["there is room"]);
}

#[tokio::test]
async fn rejected_task_does_not_replace_others() {
    let background = on_threads(1).max_awaiting_response(1).build();
    let log = Log::default();
    exchange(&background, 200, End::Complete, |after| {
        after.task("mail").spawn_blocking(log.adds("first")).unwrap();
        assert!(after.task("mail").replace().spawn_blocking(|| panics("ran")).unwrap_err().is_full());
    })
    .await;
    assert_eq!(after_shutdown(&background).await.completed, 1);
    assert_eq!(log.entries(), ["first"]);
}

#[tokio::test]
async fn task_reserves_from_registration_until_it_is_skipped() {
    let background = on_threads(1).max_awaiting_response(1).build();
    for _ in 0..3 {
        exchange(&background, 404, End::Complete, |after| {
            after.spawn_blocking(|| panics("ran")).unwrap();
            assert_eq!((background.stats().awaiting_response, background.stats().running), (1, 0));
        })
        .await;
        while background.stats().awaiting_response > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(background.stats().skipped, 3);
}

/// A client that does not read its response delays its tasks for as long as it likes.
#[tokio::test]
async fn open_responses_take_no_capacity_from_the_background() {
    let background = on_threads(1).max_tasks(1).max_awaiting_response(100).build();
    let register = |after: &AfterResponse| drop(after.spawn_blocking(|| ()).unwrap());
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(responded(&background, register).await);
    }
    let refused = responded(&background, |after| assert!(after.spawn_blocking(|| ()).unwrap_err().is_full()));
    drop(refused.await);
    assert_eq!(background.stats().awaiting_response, 100);
    background.spawn_blocking(|| ()).unwrap();
    drop(open);
    assert_eq!(after_shutdown(&background).await.completed, 101);
}

#[tokio::test]
async fn tasks_of_ended_responses_are_queued_beyond_max_tasks() {
    let background = on_threads(1).max_tasks(2).max_running(1).build();
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(responded(&background, |after| drop(after.spawn_blocking(|| ()).unwrap())).await);
    }
    let held = hold(&background).await;
    drop(open);
    while background.stats().queued < 5 {
        tokio::task::yield_now().await;
    }
    assert!(background.spawn_blocking(|| ()).unwrap_err().is_full());
    exchange(&background, 200, End::Complete, |after| assert!(after.spawn_blocking(|| ()).unwrap_err().is_full()))
        .await;
    held.release();
    assert_eq!(after_shutdown(&background).await.completed, 6);
}

/// The tasks of a request start one after the other. Those that wait for another one no longer wait
/// for the client.
#[tokio::test]
async fn tasks_of_an_ended_response_do_not_count_as_waiting_for_it() {
    let background = on_threads(1).build();
    let (release, released) = std::sync::mpsc::channel::<()>();
    exchange(&background, 200, End::Complete, |after| {
        after.spawn_blocking(move || released.recv().unwrap_or_default()).unwrap();
        (0..3).for_each(|_| drop(after.spawn_blocking(|| ()).unwrap()));
    })
    .await;
    while background.stats().awaiting_response > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((background.stats().reserved, background.stats().running), (3, 1));
    drop(release);
    assert_eq!(after_shutdown(&background).await.completed, 4);
}

#[tokio::test]
async fn closed_background_rejects_tasks_but_runs_hooks() {
    let background = on_no_thread();
    background.close();
    let mut outcome = None;
    exchange(&background, 200, End::Complete, |after| {
        let refused = after.spawn_blocking(|| panics("ran")).unwrap_err();
        assert!(refused.is_closed() && !refused.is_full());
        assert!(after.spawn(async {}).unwrap_err().is_closed());
        outcome = Some(outcome_of(after));
    })
    .await;
    assert!(outcome.unwrap().await.is_ok());
}

#[tokio::test]
async fn shutdown_waits_for_tasks_of_open_responses() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    let open = responded(&background, |after| drop(after.spawn_blocking(log.adds("task")).unwrap())).await;
    let mut shutdown = Box::pin(background.shutdown(LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    drop(open);
    let report = shutdown.await;
    assert_eq!((report.completed, report.is_clean()), (1, true));
    assert_eq!(log.entries(), ["task"]);
    assert!(failures.entries().is_empty());
}

#[tokio::test]
async fn shutdown_timeout_cancels_waiting_and_lists_running_tasks() {
    let (background, failures) = logging(on_threads(1));
    let (entered, inside) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (mut stuck, mut outcome) = (None, None);
    let response = responded(&background, |after| {
        let work = move || {
            entered.send(()).unwrap();
            let _ = released.recv();
        };
        stuck = Some(after.task("stuck").spawn_blocking(work).unwrap());
        after.task("next").spawn_blocking(|| panics("ran")).unwrap();
    });
    drop(response.await);
    inside.await.unwrap();
    let open = responded(&background, |after| {
        after.spawn_blocking(|| panics("ran")).unwrap();
        outcome = Some(outcome_of(after));
    })
    .await;
    let report = background.shutdown(Duration::from_millis(1)).await;
    let running: Vec<_> = report.still_running.iter().map(|task| (task.id, &*task.name)).collect();
    assert_eq!(running, [(stuck.unwrap().id(), "stuck")]);
    assert_eq!((report.completed, report.failed, report.cancelled), (0, 0, 2));
    drop(open);
    assert!(outcome.unwrap().await.is_ok(), "hooks always run");
    release.send(()).unwrap();
    background.shutdown(LONG).await;
    assert_eq!(background.stats().cancelled, 3, "the running task was cancelled");
    assert!(failures.entries().is_empty());
}

/// The background is full and its only thread is busy.
#[tokio::test]
async fn busy_background_takes_no_capacity_from_requests() {
    let background = on_threads(1).max_tasks(2).max_running(1).build();
    let held = hold(&background).await;
    let waits = background.spawn_blocking(|| ()).unwrap();
    let requests = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(layer(&background))
        .layer(OffloadLayer::new(requests).max_in_flight(1))
        .service(service_fn(async |request: Request<()>| {
            let after: AfterResponse = handle(&request);
            let status = if after.spawn_blocking(|| ()).is_err_and(|refused| refused.is_full()) { 200 } else { 500 };
            let body = http_body_util::Full::new(bytes::Bytes::from_static(b"pong"));
            Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
        }));
    for _ in 0..20 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!((background.stats().rejected, background.stats().running), (20, 1));
    held.release();
    drop(waits);
    assert_eq!(after_shutdown(&background).await.completed, 2);
}

#[tokio::test]
async fn failure_sink_is_called_once_per_failure() {
    let (background, failures) = logging(on_threads(1).max_running(1));
    for number in 0..3 {
        exchange(&background, 200, End::Complete, |after| {
            after.task("mail").spawn_blocking(move || Err(number)).unwrap();
            after.task("skipped").when(|_| false).spawn_blocking(|| Err("ran")).unwrap();
        })
        .await;
    }
    after_shutdown(&background).await;
    let expected = [(1, 0), (3, 1), (5, 2)].map(|(id, error)| format!("background task {id} `mail` failed: {error}"));
    assert_eq!(failures.entries(), expected);
}
