//! Places, shutdown, and what background work takes from requests: nothing.

use std::time::Duration;

use http::{Request, StatusCode};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_offload::{AfterResponse, OffloadLayer, ThreadPool, after_response::End};

use crate::support::{
    LONG, Log, Script, drained, exchange, handle, hold, layer, logging, on_no_thread, on_threads, panics, responded,
    told,
};

#[tokio::test]
async fn a_full_background_refuses_before_anything_was_promised() {
    let (background, log) = (on_threads(1).queue_capacity(1).build(), Log::default());
    let mut outcome = None;
    let first = responded(&background, |after| drop(after.task("mail").run(|| ()).unwrap())).await;
    exchange(&background, 200, End::Complete, |after| {
        after.hook(|_| ()); // takes no place
        let refused = after.run(|| panics("ran")).unwrap_err();
        assert!(refused.is_full() && !refused.is_closed() && !refused.is_untracked());
        let refused = after.task("mail").replace().spawn(async { panics("ran") }).unwrap_err();
        assert_eq!(refused.to_string(), "the task was not registered");
        assert!(std::error::Error::source(&refused).is_some());
        outcome = Some(told(after));
    })
    .await;
    assert!(outcome.unwrap().await.unwrap().is_success());
    assert_eq!((background.stats().rejected, background.stats().reserved), (2, 1));
    drop(first);
    while background.stats().completed == 0 {
        tokio::task::yield_now().await;
    }
    exchange(&background, 200, End::Complete, |after| drop(after.run(log.adds("there is room")).unwrap())).await;
    assert_eq!(drained(&background).await.completed, 2);
    assert_eq!(log.entries(), ["there is room"]);
}

#[tokio::test]
async fn what_a_refused_task_would_have_replaced_stays() {
    let background = on_threads(1).queue_capacity(1).build();
    let log = Log::default();
    exchange(&background, 200, End::Complete, |after| {
        after.task("mail").run(log.adds("first")).unwrap();
        assert!(after.task("mail").replace().run(|| panics("ran")).unwrap_err().is_full());
    })
    .await;
    assert_eq!(drained(&background).await.completed, 1);
    assert_eq!(log.entries(), ["first"]);
}

/// 5.6: places are for what may run; permits only for what does.
#[tokio::test]
async fn a_task_has_a_place_from_its_registration_and_gives_it_back_when_it_is_skipped() {
    let background = on_threads(1).queue_capacity(1).max_running(1).build();
    for _ in 0..3 {
        exchange(&background, 404, End::Complete, |after| {
            after.run(|| panics("ran")).unwrap();
            assert_eq!((background.stats().reserved, background.stats().running), (1, 0));
        })
        .await;
        while background.stats().reserved > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(background.stats().skipped, 3);
}

#[tokio::test]
async fn a_closed_background_refuses_tasks_and_hooks_are_called_e14() {
    let background = on_no_thread();
    background.close();
    let mut outcome = None;
    exchange(&background, 200, End::Complete, |after| {
        let refused = after.run(|| panics("ran")).unwrap_err();
        assert!(refused.is_closed() && !refused.is_full());
        assert!(after.spawn(async {}).unwrap_err().is_closed());
        outcome = Some(told(after));
    })
    .await;
    assert!(outcome.unwrap().await.is_ok());
}

/// 5.9: what was registered before the drain, and whose response is still on its way, is waited for.
#[tokio::test]
async fn a_drain_waits_for_the_tasks_of_open_responses_and_makes_no_noise_e13_e16_e22() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    let open = responded(&background, |after| drop(after.run(log.adds("task")).unwrap())).await;
    let mut drain = Box::pin(background.drain(LONG));
    assert!(futures_util::poll!(&mut drain).is_pending());
    drop(open);
    let report = drain.await;
    assert_eq!((report.completed, report.is_clean()), (1, true));
    assert_eq!(log.entries(), ["task"]);
    assert!(failures.entries().is_empty());
}

#[tokio::test]
async fn at_the_deadline_what_waits_is_cancelled_and_what_runs_is_listed_e14_e15() {
    let (background, failures) = logging(on_threads(1));
    let (entered, inside) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (mut stuck, mut outcome) = (None, None);
    let response = responded(&background, |after| {
        let work = move || {
            entered.send(()).unwrap();
            let _ = released.recv();
        };
        stuck = Some(after.task("stuck").run(work).unwrap());
        after.task("next").run(|| panics("ran")).unwrap();
    });
    drop(response.await);
    inside.await.unwrap();
    let open = responded(&background, |after| {
        after.run(|| panics("ran")).unwrap();
        outcome = Some(told(after));
    })
    .await;
    let report = background.drain(Duration::from_millis(1)).await;
    let orphans: Vec<_> = report.still_running.iter().map(|orphan| (orphan.id, &*orphan.name)).collect();
    assert_eq!(orphans, [(stuck.unwrap().id(), "stuck")]);
    assert_eq!((report.completed, report.failed, report.cancelled), (0, 0, 2));
    drop(open);
    assert!(outcome.unwrap().await.is_ok(), "hooks are always called");
    release.send(()).unwrap();
    background.drain(LONG).await;
    assert_eq!(background.stats().cancelled, 3, "it was told to stop");
    assert!(failures.entries().is_empty());
}

/// Every place and permit of the background is taken, and its one thread is busy.
#[tokio::test]
async fn a_busy_background_takes_no_capacity_and_no_thread_of_requests_e5_e6() {
    let background = on_threads(1).queue_capacity(2).max_running(1).build();
    let held = hold(&background).await;
    let waits = background.run(|| ()).unwrap();
    let requests = ThreadPool::builder().threads(1).queue_capacity(1).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(layer(&background))
        .layer(OffloadLayer::new(requests).max_in_flight(1))
        .service(service_fn(async |request: Request<()>| {
            let after: AfterResponse = handle(&request);
            let status = if after.run(|| ()).is_err_and(|refused| refused.is_full()) { 200 } else { 500 };
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
    assert_eq!(drained(&background).await.completed, 2);
}

#[tokio::test]
async fn an_error_sink_is_called_once_for_each_failure_of_any_request_d7() {
    let (background, failures) = logging(on_threads(1).max_running(1));
    for number in 0..3 {
        exchange(&background, 200, End::Complete, |after| {
            after.task("mail").run(move || Err(number)).unwrap();
            after.task("skipped").when(|_| false).run(|| Err("ran")).unwrap();
        })
        .await;
    }
    drained(&background).await;
    let expected = [(1, 0), (3, 1), (5, 2)].map(|(id, error)| format!("background task {id} `mail` failed: {error}"));
    assert_eq!(failures.entries(), expected);
}

#[tokio::test]
async fn nobody_can_drain_a_default_layer_but_it_runs_tasks() {
    let layer = tower_offload::AfterResponseLayer::default();
    let (ran, runs) = tokio::sync::oneshot::channel();
    let mut work = Some(move || ran.send(()).unwrap());
    let service = layer.layer(service_fn(move |request: Request<()>| {
        handle(&request).run(work.take().unwrap()).unwrap();
        async { Ok::<_, std::convert::Infallible>(http::Response::new(Script::of(3))) }
    }));
    drop((layer, service.oneshot(Request::new(())).await));
    runs.await.unwrap();
}
