//! Hooks and tasks never run in a poll or drop by the connection.

use std::{convert::Infallible, future::pending, sync::mpsc, thread};

use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tower::{Layer, Service, service_fn};
use tower_offload::{AfterResponse, after_response::End};

use crate::support::{
    Log, Script, after_shutdown, exchange, frame, handle, layer, on_no_thread, on_threads, outcome_of, respond,
    responded,
};

/// The runtime has one thread, so nothing else can run until this test yields.
#[tokio::test]
async fn drop_of_the_response_returns_before_anything_runs() {
    let (background, log) = (on_no_thread(), Log::default());
    for end in [End::Complete, End::Aborted, End::BodyError, End::BodyTooShort, End::HandlerError, End::NoResponse] {
        let before = log.entries().len();
        exchange(&background, 200, end, |after| {
            let hook = log.adds("hook");
            after.hook(move |_| hook());
            let task = log.adds("task");
            after.task("").always().spawn_blocking(task).unwrap();
            let condition = log.adds("condition");
            let asked = move |_: &_| {
                condition();
                false
            };
            after.task("").when(asked).spawn(pending::<()>()).unwrap();
        })
        .await;
        assert_eq!(log.entries().len(), before, "nothing runs before the test yields");
        while log.entries().len() < before + 3 {
            tokio::task::yield_now().await;
        }
    }
    after_shutdown(&background).await;
}

#[tokio::test]
async fn hooks_run_on_the_runtime_and_tasks_on_the_pool() {
    let background = on_threads(1).build();
    let here = (tokio::task::try_id(), thread::current().id());
    let (tx, rx) = mpsc::channel();
    let response = responded(&background, |after| {
        let send = tx.clone();
        after.hook(move |_| send.send((tokio::task::try_id(), thread::current().id())).unwrap());
        let send = tx.clone();
        let work = async move { send.send((tokio::task::try_id(), thread::current().id())).unwrap() };
        after.task("").on_runtime().spawn(work).unwrap();
        let send = tx.clone();
        after.spawn(async move { send.send((tokio::task::try_id(), thread::current().id())).unwrap() }).unwrap();
        after.spawn_blocking(move || tx.send((tokio::task::try_id(), thread::current().id())).unwrap()).unwrap();
    });
    drop(response.await);
    after_shutdown(&background).await;
    let [hook, on_runtime, spawned, run] = rx.iter().collect::<Vec<_>>()[..] else { panic!("expected four results") };
    assert!(hook.0.is_some() && hook.0 != here.0 && on_runtime.0.is_some() && on_runtime.0 != hook.0);
    assert_eq!((hook.1, on_runtime.1), (here.1, here.1), "the runtime's one thread");
    assert_ne!(run.1, here.1);
    assert_eq!((spawned, run.0), (run, None), "the pool's one thread");
}

#[tokio::test]
async fn nothing_runs_before_handler_and_body_have_ended() {
    let (background, log) = (on_no_thread(), Log::default());
    let (proceed, proceeds) = tokio::sync::oneshot::channel::<()>();
    let handler = tokio::spawn({
        let (background, log) = (background.clone(), log.clone());
        async move {
            let handler = async |after: AfterResponse| {
                after.spawn_blocking(log.adds("task")).unwrap();
                proceeds.await.unwrap();
                Ok::<_, Infallible>(Response::new(Script::of(3)))
            };
            respond(&layer(&background), Request::new(()), handler).await
        }
    });
    while background.stats().awaiting_response == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert!(log.entries().is_empty());
    proceed.send(()).unwrap();
    let response = handler.await.unwrap().unwrap();
    tokio::task::yield_now().await;
    assert!(log.entries().is_empty() && background.stats().awaiting_response == 1);
    drop(response);
    assert_eq!(after_shutdown(&background).await.completed, 1);
}

/// Simulates an open file. Its drop asserts that no task exists that could run a hook on any
/// thread.
struct Open(Log);

impl Drop for Open {
    fn drop(&mut self) {
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
        self.0.add("closed");
    }
}

#[tokio::test]
async fn values_held_by_the_body_are_dropped_before_hooks_run() {
    let (background, log) = (on_no_thread(), Log::default());
    let handler = async |after: AfterResponse| {
        let hook = log.adds("hook");
        after.hook(move |_| hook());
        let file = Open(log.clone());
        let frames = futures_util::stream::repeat_with(move || {
            let _ = &file;
            Ok::<_, Infallible>(Frame::data(bytes::Bytes::from_static(b"part")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
    };
    let mut response = respond(&layer(&background), Request::new(()), handler).await.unwrap();
    assert!(frame(response.body_mut()).is_some());
    let body = response.into_body();
    drop(body);
    while log.entries().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.entries(), ["closed", "hook"]);
}

#[tokio::test]
async fn values_held_by_the_handler_are_dropped_before_hooks_run() {
    let (background, log) = (on_no_thread(), Log::default());
    let service = service_fn(|request: Request<()>| {
        let (hook, file) = (log.adds("hook"), Open(log.clone()));
        handle(&request).hook(move |_| hook());
        async move {
            let _file = file;
            pending::<Result<Response<Script>, Infallible>>().await
        }
    });
    drop(layer(&background).layer(service).call(Request::new(())));
    while log.entries().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(log.entries(), ["closed", "hook"]);
}

/// A hook that ran in the drop would have sent its outcome before the runtime was polled.
#[tokio::test]
async fn response_dropped_on_a_thread_runs_hooks_on_the_runtime() {
    let background = on_no_thread();
    let mut outcome = None;
    let response = responded(&background, |after| outcome = Some(outcome_of(after))).await;
    thread::spawn(|| drop(response)).join().unwrap();
    let mut outcome = outcome.unwrap();
    assert!(outcome.try_recv().is_err(), "the runtime was not polled");
    assert_eq!(outcome.await.unwrap().end, End::NoResponse);
}
