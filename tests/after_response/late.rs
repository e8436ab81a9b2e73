//! Registered after the response, in the middle of it, and by what runs after it.

use std::convert::Infallible;

use futures_util::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::oneshot;
use tower_offload::{AfterResponse, after_response::End};

use crate::support::{
    Log, drained, exchange, frame, hold, layer, on_no_thread, on_threads, read, respond, responded, told,
};

#[tokio::test]
async fn after_the_end_it_runs_at_once_and_once_a9() {
    let (background, log) = (on_no_thread(), Log::default());
    let mut kept = None;
    exchange(&background, 200, End::Complete, |after| kept = Some(after.clone())).await;
    let after = kept.unwrap();
    for round in 0..3 {
        let outcome = told(&after);
        after.run(log.adds(round)).unwrap();
        let outcome = outcome.await.unwrap();
        assert_eq!((outcome.end, outcome.headers.len()), (End::Complete, 0), "nobody wanted the fields in time");
        after.task("").when(|outcome| outcome.end != End::Complete).run(log.adds("skipped")).unwrap();
    }
    let stats = drained(&background).await;
    assert_eq!((stats.completed, stats.skipped), (3, 3));
    assert_eq!(log.entries(), ["0", "1", "2"]);
}

#[tokio::test]
async fn from_a_thread_of_its_own_before_and_after_the_end_a9() {
    let background = on_threads(1).build();
    for is_late in [false, true] {
        let mut kept = None;
        let response = responded(&background, |after| kept = Some(after.clone())).await;
        let register = move || {
            let after = kept.unwrap();
            after.run(|| ()).unwrap();
            told(&after)
        };
        let outcome = if is_late {
            drop(response);
            std::thread::spawn(register).join().unwrap()
        } else {
            let outcome = std::thread::spawn(register).join().unwrap();
            drop(response);
            outcome
        };
        assert_eq!(outcome.await.unwrap().end, End::NoResponse);
    }
    assert_eq!(drained(&background).await.completed, 2);
}

#[tokio::test]
async fn many_threads_register_while_it_ends_and_each_runs_once_a9() {
    let background = on_threads(2).build();
    let mut hooks = Vec::new();
    for _ in 0..50 {
        let mut kept = None;
        let response = responded(&background, |after| kept = Some(after.clone())).await;
        let after = kept.unwrap();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let after = after.clone();
                std::thread::spawn(move || {
                    after.run(|| ()).unwrap();
                    told(&after)
                })
            })
            .collect();
        drop(response);
        hooks.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    }
    for hook in hooks {
        hook.await.unwrap();
    }
    assert_eq!(drained(&background).await.completed, 150);
}

#[tokio::test]
async fn from_inside_a_hook_it_runs_in_the_same_turn_d15() {
    let (background, log) = (on_no_thread(), Log::default());
    let (tell, told) = oneshot::channel();
    let response = responded(&background, |after| {
        after.run(log.adds("task")).unwrap();
        let (inner, log) = (after.clone(), log.clone());
        after.hook(move |_| {
            log.add("hook");
            inner.run(log.adds("task of the hook")).unwrap();
            inner.hook(move |_| {
                log.add("hook of the hook");
                tell.send(()).unwrap();
            });
        });
    });
    drop(response.await);
    told.await.unwrap();
    assert_eq!(drained(&background).await.completed, 2);
    assert_eq!(log.entries(), ["hook", "task", "hook of the hook", "task of the hook"]);
}

fn nest(after: &AfterResponse, log: &Log, depth: usize) {
    let (inner, ran) = (after.clone(), log.clone());
    let work = move || {
        ran.add(depth);
        if depth < 5 {
            nest(&inner, &ran, depth + 1);
        }
    };
    if depth % 2 == 0 { after.run(work) } else { after.spawn(async move { work() }) }.unwrap();
}

#[tokio::test]
async fn from_inside_a_task_it_runs_after_that_to_depth_5_d15() {
    let (background, log) = (on_threads(1).max_running(1).build(), Log::default());
    drop(responded(&background, |after| nest(after, &log, 1)).await);
    while log.entries().len() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(drained(&background).await.completed, 5);
    assert_eq!(log.entries(), ["1", "2", "3", "4", "5"]);
}

/// 5.8: what a task or a hook registers is in the drain that waits for it.
#[tokio::test]
async fn during_a_drain_tasks_and_hooks_may_register_to_depth_5_and_nobody_else_d15_e14() {
    let (background, log) = (on_threads(1).max_running(1).build(), Log::default());
    let held = hold(&background).await;
    let (tell, told) = oneshot::channel();
    let mut outside = None;
    let response = responded(&background, |after| {
        nest(after, &log, 1);
        let inner = after.clone();
        let ran = log.clone();
        after.hook(move |_| tell.send(inner.run(move || ran.add("of the hook")).is_ok()).unwrap());
        outside = Some(after.clone());
    })
    .await;
    let mut drain = Box::pin(background.drain(crate::support::LONG));
    assert!(futures_util::poll!(&mut drain).is_pending());
    assert!(outside.unwrap().run(|| ()).unwrap_err().is_closed());
    drop(response);
    held.release();
    assert_eq!(drain.await.completed, 7);
    assert_eq!(log.entries(), ["1", "of the hook", "2", "3", "4", "5"]);
    assert!(told.await.unwrap());
}

/// Registered before and during the stream: both run after its last chunk.
#[tokio::test]
async fn a_stream_registers_while_it_streams_a6() {
    let (background, log) = (on_no_thread(), Log::default());
    let (written, in_task) = (log.clone(), log.clone());
    let handler = async |after: AfterResponse| {
        after.run(log.adds("registered before")).unwrap();
        let frames = futures_util::stream::iter(0..3).map(move |chunk| {
            written.add(format!("chunk {chunk}"));
            after.run(in_task.adds(format!("registered in chunk {chunk}"))).unwrap();
            Ok::<_, Infallible>(Frame::data(bytes::Bytes::from_static(b"chunk")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    };
    let mut body = respond(&layer(&background), Request::new(()), handler).await.unwrap().into_body();
    assert!(frame(&mut body).is_some());
    tokio::task::yield_now().await;
    assert_eq!(log.entries(), ["chunk 0"], "nothing runs in the middle");
    read(&mut body);
    drop(body);
    assert_eq!(drained(&background).await.completed, 4);
    let expected = ["before", "in chunk 0", "in chunk 1", "in chunk 2"].map(|when| format!("registered {when}"));
    assert_eq!(log.entries()[3..], expected);
}
