//! 5.4: nothing that was registered runs in a poll or a drop of the connection's.

use std::{convert::Infallible, future::pending, sync::mpsc, thread};

use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tower::{Layer, Service, service_fn};
use tower_offload::{AfterResponse, after_response::End};

use crate::support::{
    Log, Script, drained, exchange, frame, handle, layer, on_no_thread, on_threads, respond, responded, told,
};

/// On a runtime with one thread nothing can run until this test yields.
#[tokio::test]
async fn a_drop_returns_before_anything_runs() {
    let (background, log) = (on_no_thread(), Log::default());
    for end in [End::Complete, End::Aborted, End::BodyError, End::BodyTooShort, End::HandlerError, End::NoResponse] {
        let before = log.entries().len();
        exchange(&background, 200, end, |after| {
            let hook = log.adds("hook");
            after.hook(move |_| hook());
            let task = log.adds("task");
            after.task("").always().run(task).unwrap();
            let condition = log.adds("condition");
            let asked = move |_: &_| {
                condition();
                false
            };
            after.task("").when(asked).spawn(pending::<()>()).unwrap();
        })
        .await;
        assert_eq!(log.entries().len(), before, "nothing has run");
        while log.entries().len() < before + 3 {
            tokio::task::yield_now().await;
        }
    }
    drained(&background).await;
}

#[tokio::test]
async fn a_hook_and_an_async_task_run_in_tasks_of_their_own_and_sync_work_on_a_thread_of_its_own() {
    let background = on_threads(1).build();
    let here = (tokio::task::try_id(), thread::current().id());
    let (tell, told) = mpsc::channel();
    let response = responded(&background, |after| {
        let send = tell.clone();
        after.hook(move |_| send.send((tokio::task::try_id(), thread::current().id())).unwrap());
        let send = tell.clone();
        after.spawn(async move { send.send((tokio::task::try_id(), thread::current().id())).unwrap() }).unwrap();
        after.run(move || tell.send((tokio::task::try_id(), thread::current().id())).unwrap()).unwrap();
    });
    drop(response.await);
    drained(&background).await;
    let [hook, spawned, run] = told.iter().collect::<Vec<_>>()[..] else { panic!("three have run") };
    assert!(hook.0.is_some() && hook.0 != here.0 && spawned.0.is_some() && spawned.0 != hook.0);
    assert_eq!((hook.1, spawned.1), (here.1, here.1), "the runtime's one thread");
    assert!(run.0.is_none() && run.1 != here.1);
}

/// A5: the handler waits for something else.
#[tokio::test]
async fn nothing_runs_while_the_handler_or_the_body_is_not_over_a5() {
    let (background, log) = (on_no_thread(), Log::default());
    let (proceed, proceeds) = tokio::sync::oneshot::channel::<()>();
    let handler = tokio::spawn({
        let (background, log) = (background.clone(), log.clone());
        async move {
            let handler = async |after: AfterResponse| {
                after.run(log.adds("task")).unwrap();
                proceeds.await.unwrap();
                Ok::<_, Infallible>(Response::new(Script::of(3)))
            };
            respond(&layer(&background), Request::new(()), handler).await
        }
    });
    while background.stats().reserved == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    assert!(log.entries().is_empty());
    proceed.send(()).unwrap();
    let response = handler.await.unwrap().unwrap();
    tokio::task::yield_now().await;
    assert!(log.entries().is_empty() && background.stats().reserved == 1);
    drop(response);
    assert_eq!(drained(&background).await.completed, 1);
}

/// An open file, say. Where it is closed there is no task yet that could call a hook, not even on another thread.
struct Open(Log);

impl Drop for Open {
    fn drop(&mut self) {
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
        self.0.add("closed");
    }
}

#[tokio::test]
async fn what_the_body_holds_is_dropped_before_b12() {
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
async fn what_the_handler_holds_is_dropped_before_b12() {
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

/// A hook that never gets a turn of its own would be called in the drop; this one is called when the runtime turns.
#[tokio::test]
async fn an_outcome_is_told_to_hooks_on_the_runtime_of_the_handler_from_whichever_thread_drops() {
    let background = on_no_thread();
    let mut outcome = None;
    let response = responded(&background, |after| outcome = Some(told(after))).await;
    thread::spawn(|| drop(response)).join().unwrap();
    let mut outcome = outcome.unwrap();
    assert!(outcome.try_recv().is_err(), "the runtime stands still");
    assert_eq!(outcome.await.unwrap().end, End::NoResponse);
}
