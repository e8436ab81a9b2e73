//! Registrations after the end of the response, during it, and from hooks and tasks.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::oneshot;
use tower_offload::{AfterResponse, after_response::End};

use crate::support::{
    Log, after_shutdown, exchange, frame, hold, layer, on_no_thread, on_threads, outcome_of, read, respond, responded,
};

#[tokio::test]
async fn registration_after_the_end_runs_once_and_at_once() {
    let (background, log) = (on_no_thread(), Log::default());
    let mut kept = None;
    exchange(&background, 200, End::Complete, |after| kept = Some(after.clone())).await;
    let after = kept.unwrap();
    for round in 0..3 {
        let outcome = outcome_of(&after);
        after.spawn_blocking(log.adds(round)).unwrap();
        let outcome = outcome.await.unwrap();
        assert_eq!(
            (outcome.end, outcome.headers.len()),
            (End::Complete, 0),
            "nothing was registered when the handler responded"
        );
        after.task("").when(|outcome| outcome.end != End::Complete).spawn_blocking(log.adds("skipped")).unwrap();
    }
    let stats = after_shutdown(&background).await;
    assert_eq!((stats.completed, stats.skipped), (3, 3));
    assert_eq!(log.entries(), ["0", "1", "2"]);
}

#[tokio::test]
async fn registration_from_another_thread_before_and_after_the_end() {
    let background = on_threads(1).build();
    for is_late in [false, true] {
        let mut kept = None;
        let response = responded(&background, |after| kept = Some(after.clone())).await;
        let register = move || {
            let after = kept.unwrap();
            after.spawn_blocking(|| ()).unwrap();
            outcome_of(&after)
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
    assert_eq!(after_shutdown(&background).await.completed, 2);
}

#[tokio::test]
async fn concurrent_registrations_at_the_end_each_run_once() {
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
                    after.spawn_blocking(|| ()).unwrap();
                    outcome_of(&after)
                })
            })
            .collect();
        drop(response);
        hooks.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
    }
    for hook in hooks {
        hook.await.unwrap();
    }
    assert_eq!(after_shutdown(&background).await.completed, 150);
}

#[tokio::test]
async fn registrations_in_a_hook_run_after_it() {
    let (background, log) = (on_no_thread(), Log::default());
    let (tx, rx) = oneshot::channel();
    let response = responded(&background, |after| {
        after.spawn_blocking(log.adds("task")).unwrap();
        let (inner, log) = (after.clone(), log.clone());
        after.hook(move |_| {
            log.add("hook");
            inner.spawn_blocking(log.adds("task of the hook")).unwrap();
            inner.hook(move |_| {
                log.add("hook of the hook");
                tx.send(()).unwrap();
            });
        });
    });
    drop(response.await);
    rx.await.unwrap();
    assert_eq!(after_shutdown(&background).await.completed, 2);
    assert_eq!(log.entries(), ["hook", "task", "hook of the hook", "task of the hook"]);
}

/// Registers a hook that registers the next one, `length` times.
fn chain(after: AfterResponse, ran: Arc<AtomicUsize>, length: usize) {
    let inner = after.clone();
    after.hook(move |_| {
        ran.fetch_add(1, SeqCst);
        if length > 1 {
            chain(inner, ran, length - 1);
        }
    });
}

/// Waits until `ran` is `total`. Returns the maximum that was added between two turns of another
/// task.
async fn longest_run(ran: Arc<AtomicUsize>, total: usize) -> usize {
    let observe = async move {
        let (mut before, mut longest) = (0, 0);
        while before < total {
            tokio::task::yield_now().await;
            let now = ran.load(SeqCst);
            longest = longest.max(now - before);
            before = now;
        }
        longest
    };
    tokio::spawn(observe).await.unwrap()
}

#[tokio::test]
async fn chain_of_hooks_lets_other_tasks_run() {
    const LENGTH: usize = 10_000;
    for is_late in [false, true] {
        let (background, ran) = (on_no_thread(), Arc::<AtomicUsize>::default());
        let mut kept = None;
        let mut response = Some(responded(&background, |after| kept = Some(after.clone())).await);
        if is_late {
            response = None;
        }
        chain(kept.unwrap(), ran.clone(), LENGTH);
        drop(response);
        let longest = longest_run(ran, LENGTH).await;
        assert!(longest <= 100, "{longest} hooks ran in a row");
    }
}

#[tokio::test]
async fn many_hooks_and_tasks_of_a_request_let_other_tasks_run() {
    const EACH: usize = 2_000;
    let (background, ran) = (on_no_thread(), Arc::<AtomicUsize>::default());
    let response = responded(&background, |after| {
        for _ in 0..EACH {
            let (hook, task) = (ran.clone(), ran.clone());
            after.hook(move |_| _ = hook.fetch_add(1, SeqCst));
            let task = move || _ = task.fetch_add(1, SeqCst);
            after.task("").concurrent(EACH).spawn_blocking(task).unwrap();
        }
    });
    drop(response.await);
    let longest = longest_run(ran, 2 * EACH).await;
    assert!(longest <= 100, "{longest} hooks and tasks ran in a row");
}

fn nest(after: &AfterResponse, log: &Log, depth: usize) {
    let (inner, ran) = (after.clone(), log.clone());
    let work = move || {
        ran.add(depth);
        if depth < 5 {
            nest(&inner, &ran, depth + 1);
        }
    };
    if depth % 2 == 1 { after.spawn(async move { work() }) } else { after.spawn_blocking(work) }.unwrap();
}

#[tokio::test]
async fn registrations_in_tasks_run_five_levels_deep() {
    let (background, log) = (on_threads(1).max_running(1).build(), Log::default());
    drop(responded(&background, |after| nest(after, &log, 1)).await);
    while log.entries().len() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(after_shutdown(&background).await.completed, 5);
    assert_eq!(log.entries(), ["1", "2", "3", "4", "5"]);
}

/// During a shutdown, only running hooks and tasks may register work. The shutdown then waits for
/// that work too.
#[tokio::test]
async fn during_a_shutdown_only_hooks_and_tasks_may_register() {
    let (background, log) = (on_threads(1).max_running(1).build(), Log::default());
    let held = hold(&background).await;
    let (tx, rx) = oneshot::channel();
    let mut outside = None;
    let response = responded(&background, |after| {
        nest(after, &log, 1);
        let inner = after.clone();
        let ran = log.clone();
        after.hook(move |_| tx.send(inner.spawn_blocking(move || ran.add("of the hook")).is_ok()).unwrap());
        outside = Some(after.clone());
    })
    .await;
    let mut shutdown = Box::pin(background.shutdown(crate::support::LONG));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    assert!(outside.unwrap().spawn_blocking(|| ()).unwrap_err().is_closed());
    drop(response);
    held.release();
    assert_eq!(shutdown.await.completed, 7);
    assert_eq!(log.entries(), ["1", "of the hook", "2", "3", "4", "5"]);
    assert!(rx.await.unwrap());
}

/// Tasks registered before and during the stream run after its last chunk.
#[tokio::test]
async fn registrations_during_a_stream_run_after_it() {
    let (background, log) = (on_no_thread(), Log::default());
    let (written, in_task) = (log.clone(), log.clone());
    let handler = async |after: AfterResponse| {
        after.spawn_blocking(log.adds("registered before")).unwrap();
        let frames = futures_util::stream::iter(0..3).map(move |chunk| {
            written.add(format!("chunk {chunk}"));
            after.spawn_blocking(in_task.adds(format!("registered in chunk {chunk}"))).unwrap();
            Ok::<_, Infallible>(Frame::data(bytes::Bytes::from_static(b"chunk")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    };
    let mut body = respond(&layer(&background), Request::new(()), handler).await.unwrap().into_body();
    assert!(frame(&mut body).is_some());
    tokio::task::yield_now().await;
    assert_eq!(log.entries(), ["chunk 0"], "nothing runs during the stream");
    read(&mut body);
    drop(body);
    assert_eq!(after_shutdown(&background).await.completed, 4);
    let expected = ["before", "in chunk 0", "in chunk 1", "in chunk 2"].map(|when| format!("registered {when}"));
    assert_eq!(log.entries()[3..], expected);
}
