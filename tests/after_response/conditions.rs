//! Conditions of tasks at every outcome.

use std::convert::Infallible;

use http::{Request, Response};
use tower_offload::{
    AfterResponse, Background,
    after_response::{End, ResponseTaskBuilder},
};

use crate::support::{Log, Script, after_shutdown, exchange, layer, logging, on_no_thread, on_threads, read, respond};

const ENDS: [End; 6] =
    [End::Aborted, End::BodyError, End::BodyTooShort, End::Complete, End::HandlerError, End::NoResponse];

/// Returns the ends at which a task with this condition runs, for responses with this status.
async fn runs_at(status: u16, condition: impl Fn(ResponseTaskBuilder<'_>) -> ResponseTaskBuilder<'_>) -> Vec<End> {
    let mut ran = Vec::new();
    for end in ENDS {
        let (background, log) = (on_no_thread(), Log::default());
        exchange(&background, status, end, |after| {
            drop(condition(after.task("")).spawn_blocking(log.adds("ran")).unwrap())
        })
        .await;
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.skipped), if log.entries().is_empty() { (0, 1) } else { (1, 0) });
        ran.extend((stats.completed == 1).then_some(end));
    }
    ran
}

#[tokio::test]
async fn every_condition_at_every_end() {
    // Neither the state of the connection nor a replacement of the response matters.
    let responded = [End::Aborted, End::BodyError, End::BodyTooShort, End::Complete, End::NoResponse];
    assert_eq!(runs_at(200, |task| task).await, responded);
    assert_eq!(runs_at(307, |task| task).await, responded);
    assert_eq!(runs_at(404, |task| task).await, []);
    assert_eq!(runs_at(500, |task| task).await, []);
    for status in [200, 307, 404, 500] {
        assert_eq!(runs_at(status, |task| task.always()).await, ENDS);
        assert_eq!(runs_at(status, |task| task.on_complete()).await, [End::Complete]);
        assert_eq!(runs_at(status, |task| task.when(|outcome| outcome.end == End::Aborted)).await, [End::Aborted]);
        assert_eq!(runs_at(status, |task| task.when(|_| true)).await, ENDS);
        assert_eq!(runs_at(status, |task| task.when(|_| panic!("in the condition"))).await, []);
    }
}

#[tokio::test]
async fn last_condition_replaces_earlier_ones() {
    assert_eq!(runs_at(404, |task| task.always().on_complete()).await, [End::Complete]);
    assert_eq!(runs_at(404, |task| task.on_flushed().always()).await, ENDS);
}

#[tokio::test]
async fn handler_panic_runs_always_tasks() {
    let (background, log) = (on_no_thread(), Log::default());
    let ran = log.clone();
    let panicked = tokio::spawn({
        let background = background.clone();
        async move {
            let response = crate::support::responded(&background, move |after| {
                after.task("always").always().spawn_blocking(ran.adds("always")).unwrap();
                after.spawn_blocking(ran.adds("default")).unwrap();
                panic!("in the handler");
            });
            drop(response.await);
        }
    });
    assert!(panicked.await.unwrap_err().is_panic());
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.skipped), (1, 1));
    assert_eq!(log.entries(), ["always"]);
}

#[tokio::test]
async fn panicking_predicate_skips_only_its_task() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    exchange(&background, 200, End::Complete, |after| {
        after.task("").when(|_| panic!("in the condition")).spawn_blocking(log.adds("asked")).unwrap();
        after.spawn_blocking(log.adds("next")).unwrap();
    })
    .await;
    assert_eq!(after_shutdown(&background).await.skipped, 1);
    assert_eq!(log.entries(), ["next"]);
    assert!(failures.entries().is_empty());
}

/// gRPC sends its status in fields. gRPC-Web sends it in the body, which is not inspected.
#[tokio::test]
async fn grpc_web_response_needs_no_grpc_status_for_success() {
    for (kind, runs) in [
        ("application/grpc-web", 1),
        ("application/grpc-web+proto", 1),
        ("application/grpc-web-text", 1),
        ("application/grpc", 0),
        ("application/grpc+proto", 0),
        ("application/grpc;charset=utf-8", 0),
    ] {
        let background = on_no_thread();
        let handler = async |after: AfterResponse| {
            after.spawn_blocking(|| ()).unwrap();
            Ok::<_, Infallible>(Response::builder().header("content-type", kind).body(Script::of(3)).unwrap())
        };
        read(respond(&layer(&background), Request::new(()), handler).await.unwrap().body_mut());
        let stats = after_shutdown(&background).await;
        assert_eq!((stats.completed, stats.skipped), (runs, 1 - runs), "{kind}");
    }
}

fn expect_rejection(after: &AfterResponse, background: &Background) {
    let refused = after.task("mail").replace().on_flushed().spawn_blocking(|| ()).unwrap_err();
    assert!(refused.is_untracked() && !refused.is_full() && !refused.is_closed());
    let refused = after.task("mail").on_flushed().spawn(async {}).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("task rejected: it is for flushed responses, and the connection is not tracked")
    );
    let stats = background.stats();
    assert_eq!((stats.awaiting_response, stats.rejected), (1, 0), "nothing was registered");
}

#[tokio::test]
async fn on_flushed_is_rejected_on_an_untracked_connection() {
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 200, End::Complete, |after| {
        assert!(!after.is_tracked());
        after.task("mail").spawn_blocking(log.adds("mail")).unwrap();
        expect_rejection(after, &background);
    })
    .await;
    assert_eq!(after_shutdown(&background).await.completed, 1);
    assert_eq!(log.entries(), ["mail"], "the task that it would have replaced stays");
}
