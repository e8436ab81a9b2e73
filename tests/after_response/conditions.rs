//! 5.3: which tasks an outcome is for.

use std::convert::Infallible;

use http::{Request, Response};
use tower_offload::{
    AfterResponse, Background,
    after_response::{End, Task},
};

use crate::support::{Log, Script, drained, exchange, layer, logging, on_no_thread, on_threads, read, respond};

const ENDS: [End; 6] =
    [End::Aborted, End::BodyError, End::BodyTooShort, End::Complete, End::HandlerError, End::NoResponse];

/// For which ends a task of such a condition runs, if the status is that.
async fn runs_at(status: u16, condition: impl Fn(Task<'_>) -> Task<'_>) -> Vec<End> {
    let mut ran = Vec::new();
    for end in ENDS {
        let (background, log) = (on_no_thread(), Log::default());
        exchange(&background, status, end, |after| drop(condition(after.task("")).run(log.adds("ran")).unwrap())).await;
        let stats = drained(&background).await;
        assert_eq!((stats.completed, stats.skipped), if log.entries().is_empty() { (0, 1) } else { (1, 0) });
        ran.extend((stats.completed == 1).then_some(end));
    }
    ran
}

#[tokio::test]
async fn every_condition_at_every_end_b3_b4_b5() {
    // Whatever became of the connection; also of a response that an outer layer replaced.
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
async fn of_two_conditions_the_last_one_counts() {
    assert_eq!(runs_at(404, |task| task.always().on_complete()).await, [End::Complete]);
    assert_eq!(runs_at(404, |task| task.on_flushed().always()).await, ENDS);
}

#[tokio::test]
async fn b3_a_handler_that_panics_has_its_always_tasks_run() {
    let (background, log) = (on_no_thread(), Log::default());
    let ran = log.clone();
    let panicked = tokio::spawn({
        let background = background.clone();
        async move {
            let response = crate::support::responded(&background, move |after| {
                after.task("always").always().run(ran.adds("always")).unwrap();
                after.run(ran.adds("default")).unwrap();
                panic!("in the handler");
            });
            drop(response.await);
        }
    });
    assert!(panicked.await.unwrap_err().is_panic());
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.skipped), (1, 1));
    assert_eq!(log.entries(), ["always"]);
}

#[tokio::test]
async fn a_condition_that_panics_ends_its_task_and_no_other() {
    let (background, failures) = logging(on_threads(1));
    let log = Log::default();
    exchange(&background, 200, End::Complete, |after| {
        after.task("").when(|_| panic!("in the condition")).run(log.adds("asked")).unwrap();
        after.run(log.adds("next")).unwrap();
    })
    .await;
    assert_eq!(drained(&background).await.skipped, 1);
    assert_eq!(log.entries(), ["next"]);
    assert!(failures.entries().is_empty());
}

/// The status of gRPC is in the fields, that of gRPC-Web in the body, where nobody looks.
#[tokio::test]
async fn a_response_of_grpc_web_needs_no_status_to_be_a_success() {
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
            after.run(|| ()).unwrap();
            Ok::<_, Infallible>(Response::builder().header("content-type", kind).body(Script::of(3)).unwrap())
        };
        read(respond(&layer(&background), Request::new(()), handler).await.unwrap().body_mut());
        let stats = drained(&background).await;
        assert_eq!((stats.completed, stats.skipped), (runs, 1 - runs), "{kind}");
    }
}

fn refused(after: &AfterResponse, background: &Background) {
    let refused = after.task("mail").replace().on_flushed().run(|| ()).unwrap_err();
    assert!(refused.is_untracked() && !refused.is_full() && !refused.is_closed());
    let refused = after.task("mail").on_flushed().spawn(async {}).unwrap_err();
    assert!(refused.to_string().starts_with("the task is for flushed responses, and the connection is not tracked"));
    let stats = background.stats();
    assert_eq!((stats.reserved, stats.rejected), (1, 0), "nothing was registered");
}

#[tokio::test]
async fn for_flushed_responses_only_is_refused_where_nobody_can_tell() {
    let (background, log) = (on_no_thread(), Log::default());
    exchange(&background, 200, End::Complete, |after| {
        assert!(!after.is_tracked());
        after.task("mail").run(log.adds("mail")).unwrap();
        refused(after, &background);
    })
    .await;
    assert_eq!(drained(&background).await.completed, 1);
    assert_eq!(log.entries(), ["mail"], "what it would have replaced stays");
}
