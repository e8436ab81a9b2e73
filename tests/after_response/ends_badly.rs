//! Outcomes of responses that fail, panic or are dropped.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::sync::oneshot::Receiver;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_offload::{
    AfterResponse,
    after_response::{Delivery, End, Outcome},
};

use crate::support::{
    Log, Script, Step, after_shutdown, frame, handle, hooks_only, layer, on_no_thread, outcome_of, respond,
};

type HandlerResult = Result<Response<Script>, Infallible>;

async fn ended(rx: Option<Receiver<Outcome>>) -> (End, Option<String>) {
    let outcome = rx.expect("the handler ran").await.expect("the hook is called");
    assert_eq!(outcome.delivery, Delivery::NotDelivered);
    (outcome.end, outcome.error)
}

#[tokio::test]
async fn handler_error_is_reported_and_returned() {
    let mut outcome = None;
    let handler = async |after: AfterResponse| {
        outcome = Some(outcome_of(&after));
        Err::<Response<Script>, _>("no database")
    };
    let answer = respond(&hooks_only(), Request::new(()), handler).await;
    assert_eq!(answer.unwrap_err(), "no database");
    assert_eq!(ended(outcome).await, (End::HandlerError, Some("no database".to_owned())));
}

#[tokio::test]
async fn panicking_display_reports_an_error_without_text() {
    struct Mute;
    impl std::fmt::Display for Mute {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("in a display")
        }
    }
    let mut outcome = None;
    let handler = async |after: AfterResponse| {
        outcome = Some(outcome_of(&after));
        Err::<Response<Script>, _>(Mute)
    };
    assert!(respond(&hooks_only(), Request::new(()), handler).await.is_err());
    assert_eq!(ended(outcome).await, (End::HandlerError, None));
}

/// hyper sends 500 instead.
#[tokio::test]
async fn informational_status_is_a_handler_error() {
    for status in [100, 102, 103, 199] {
        let (background, log, mut outcome) = (on_no_thread(), Log::default(), None);
        let handler = async |after: AfterResponse| {
            outcome = Some(outcome_of(&after));
            after.spawn_blocking(log.adds("default")).unwrap();
            after.task("always").always().spawn_blocking(log.adds("always")).unwrap();
            Ok::<_, Infallible>(Response::builder().status(status).body(Script::default()).unwrap())
        };
        drop(respond(&layer(&background), Request::new(()), handler).await);
        let (end, error) = ended(outcome).await;
        assert_eq!(end, End::HandlerError, "{status}");
        assert!(error.unwrap().starts_with(&status.to_string()));
        after_shutdown(&background).await;
        assert_eq!(log.entries(), ["always"]);
    }
}

#[tokio::test]
async fn handler_panic_resumes_in_the_caller() {
    let mut outcome = None;
    let handler = async |after: AfterResponse| -> HandlerResult {
        outcome = Some(outcome_of(&after));
        tokio::task::yield_now().await;
        panic!("in the handler")
    };
    let layer = hooks_only();
    let answer = AssertUnwindSafe(respond(&layer, Request::new(()), handler));
    let payload = answer.catch_unwind().await.unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"in the handler"));
    assert_eq!(ended(outcome).await, (End::HandlerError, Some("panicked".to_owned())));
}

#[tokio::test]
async fn catch_panic_layer_outside_and_inside_of_the_layer() {
    async fn send(is_outside: bool) -> (StatusCode, Outcome) {
        let (tx, rx) = std::sync::mpsc::channel();
        let handler = service_fn(move |request: Request<()>| {
            handle(&request).hook({
                let tx = tx.clone();
                move |outcome| tx.send(outcome.clone()).unwrap()
            });
            async {
                if true {
                    panic!("in the handler")
                } else {
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            }
        });
        let (layer, catch) = (hooks_only(), CatchPanicLayer::new());
        let status = if is_outside {
            ServiceBuilder::new()
                .layer(catch)
                .layer(layer)
                .service(handler)
                .oneshot(Request::new(()))
                .await
                .unwrap()
                .status()
        } else {
            let service = ServiceBuilder::new().layer(layer).layer(catch).service(handler);
            let mut response = service.oneshot(Request::new(())).await.unwrap();
            crate::support::read(response.body_mut());
            response.status()
        };
        let outcome = loop {
            match rx.try_recv() {
                Ok(outcome) => break outcome,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        (status, outcome)
    }
    let (status, outcome) = send(true).await;
    assert_eq!((status, outcome.end, outcome.status), (StatusCode::INTERNAL_SERVER_ERROR, End::HandlerError, None));
    let (status, outcome) = send(false).await;
    assert_eq!((status, outcome.end, outcome.status), (StatusCode::INTERNAL_SERVER_ERROR, End::Complete, Some(status)));
}

#[tokio::test]
async fn panic_in_call_is_a_handler_error() {
    let mut outcome = None;
    let service = service_fn(|request: Request<()>| -> std::future::Ready<HandlerResult> {
        outcome = Some(outcome_of(&handle(&request)));
        panic!("in call")
    });
    let mut service = hooks_only().layer(service);
    let call = std::panic::catch_unwind(AssertUnwindSafe(|| drop(service.call(Request::new(())))));
    assert!(call.is_err());
    drop(service);
    assert_eq!(ended(outcome).await, (End::HandlerError, Some("panicked".to_owned())));
}

#[tokio::test]
async fn handler_dropped_before_its_head_is_no_response() {
    for polls in 0..2 {
        let mut outcome = None;
        let service = service_fn(|request: Request<()>| {
            outcome = Some(outcome_of(&handle(&request)));
            std::future::pending::<HandlerResult>()
        });
        let mut service = hooks_only().layer(service);
        let mut call = service.call(Request::new(()));
        (0..polls).for_each(|_| assert!((&mut call).now_or_never().is_none()));
        drop(call);
        drop(service);
        assert_eq!(ended(outcome).await, (End::NoResponse, None));
    }
}

#[tokio::test]
async fn future_dropped_elsewhere_runs_hooks_on_the_runtime() {
    for elsewhere in [|call| drop(tokio::spawn(async { drop(call) })), |call| drop(std::thread::spawn(|| drop(call)))] {
        let elsewhere: fn(Box<dyn Send>) = elsewhere;
        let mut outcome = None;
        let service = service_fn(|request: Request<()>| {
            outcome = Some(outcome_of(&handle(&request)));
            std::future::pending::<HandlerResult>()
        });
        let mut service = hooks_only().layer(service);
        elsewhere(Box::new(service.call(Request::new(()))));
        drop(service);
        assert_eq!(ended(outcome).await, (End::NoResponse, None));
    }
}

#[tokio::test]
async fn body_panic_is_a_body_error() {
    let mut outcome = None;
    let handler = async |after: AfterResponse| -> HandlerResult {
        outcome = Some(outcome_of(&after));
        Ok(Response::new(Script::new([Step::Data(6), Step::Panic])))
    };
    let mut body = respond(&hooks_only(), Request::new(()), handler).await.unwrap().into_body();
    assert!(frame(&mut body).is_some());
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| frame(&mut body))).is_err());
    drop(body);
    assert_eq!(ended(outcome).await, (End::BodyError, Some("panicked".to_owned())));
}

/// Panics in `size_hint` (`true`), or in `is_end_stream` after a frame (`false`).
struct Rude(bool);

impl Body for Rude {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0 = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data")))))
    }

    fn is_end_stream(&self) -> bool {
        assert!(!self.0, "in is_end_stream");
        false
    }

    fn size_hint(&self) -> SizeHint {
        assert!(!self.0, "in size_hint");
        SizeHint::default()
    }
}

#[tokio::test]
async fn panic_in_size_hint_or_is_end_stream_is_an_error() {
    for (rude, end) in [(true, End::HandlerError), (false, End::BodyError)] {
        let mut outcome = None;
        let handler = async |after: AfterResponse| {
            outcome = Some(outcome_of(&after));
            Ok::<_, Infallible>(Response::new(Rude(rude)))
        };
        let layer = hooks_only();
        if let Ok(response) = AssertUnwindSafe(respond(&layer, Request::new(()), handler)).catch_unwind().await {
            let mut body = response.unwrap().into_body();
            assert!(std::panic::catch_unwind(AssertUnwindSafe(|| frame(&mut body))).is_err());
        }
        assert_eq!(ended(outcome).await, (end, Some("panicked".to_owned())));
    }
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("in a drop");
    }
}

#[tokio::test]
async fn panic_in_drop_does_not_prevent_hooks() {
    let (mut of_handler, mut of_body) = (None, None);
    let service = service_fn(|request: Request<()>| {
        of_handler = Some(outcome_of(&handle(&request)));
        let bomb = Bomb;
        async move {
            let _bomb = bomb;
            std::future::pending::<HandlerResult>().await
        }
    });
    let mut service = hooks_only().layer(service);
    let call = service.call(Request::new(()));
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| drop(call))).is_err());
    drop(service);
    assert_eq!(ended(of_handler).await, (End::NoResponse, None));

    let handler = async |after: AfterResponse| {
        of_body = Some(outcome_of(&after));
        let bomb = Bomb;
        let frames = futures_util::stream::repeat_with(move || {
            let _bomb = &bomb;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data")))
        });
        Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(frames)))
    };
    let mut response = respond(&hooks_only(), Request::new(()), handler).await.unwrap();
    assert!(frame(response.body_mut()).is_some());
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| drop(response))).is_err());
    assert_eq!(ended(of_body).await, (End::Aborted, None));
}
