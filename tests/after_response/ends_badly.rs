//! 5.2: one outcome on every path, where something fails, panics or is dropped.

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
    AfterResponse, AfterResponseLayer,
    after_response::{Delivery, End, Outcome},
};

use crate::support::{Log, Script, Step, drained, frame, handle, layer, on_no_thread, respond, told};

type Answer = Result<Response<Script>, Infallible>;

async fn ended(told: Option<Receiver<Outcome>>) -> (End, Option<String>) {
    let outcome = told.expect("the handler ran").await.expect("the hook is called");
    assert_eq!(outcome.delivery, Delivery::None);
    (outcome.end, outcome.error)
}

#[tokio::test]
async fn the_error_of_a_handler_is_told_and_passed_on_b2() {
    let mut outcome = None;
    let handler = async |after: AfterResponse| {
        outcome = Some(told(&after));
        Err::<Response<Script>, _>("no database")
    };
    let answer = respond(&AfterResponseLayer::default(), Request::new(()), handler).await;
    assert_eq!(answer.unwrap_err(), "no database");
    assert_eq!(ended(outcome).await, (End::HandlerError, Some("no database".to_owned())));
}

#[tokio::test]
async fn an_error_that_cannot_be_shown_is_one_without_text() {
    struct Mute;
    impl std::fmt::Display for Mute {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("in a display")
        }
    }
    let mut outcome = None;
    let handler = async |after: AfterResponse| {
        outcome = Some(told(&after));
        Err::<Response<Script>, _>(Mute)
    };
    assert!(respond(&AfterResponseLayer::default(), Request::new(()), handler).await.is_err());
    assert_eq!(ended(outcome).await, (End::HandlerError, None));
}

/// hyper answers 500 in its place.
#[tokio::test]
async fn an_interim_status_is_no_response_of_a_handler() {
    for status in [100, 102, 103, 199] {
        let (background, log, mut outcome) = (on_no_thread(), Log::default(), None);
        let handler = async |after: AfterResponse| {
            outcome = Some(told(&after));
            after.run(log.adds("default")).unwrap();
            after.task("always").always().run(log.adds("always")).unwrap();
            Ok::<_, Infallible>(Response::builder().status(status).body(Script::default()).unwrap())
        };
        drop(respond(&layer(&background), Request::new(()), handler).await);
        let (end, error) = ended(outcome).await;
        assert_eq!(end, End::HandlerError, "{status}");
        assert!(error.unwrap().starts_with(&status.to_string()));
        drained(&background).await;
        assert_eq!(log.entries(), ["always"]);
    }
}

#[tokio::test]
async fn a_panic_of_a_handler_goes_on_to_the_caller() {
    let mut outcome = None;
    let handler = async |after: AfterResponse| -> Answer {
        outcome = Some(told(&after));
        tokio::task::yield_now().await;
        panic!("in the handler")
    };
    let layer = AfterResponseLayer::default();
    let answer = AssertUnwindSafe(respond(&layer, Request::new(()), handler));
    let payload = answer.catch_unwind().await.unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"in the handler"));
    assert_eq!(ended(outcome).await, (End::HandlerError, Some("panicked".to_owned())));
}

#[tokio::test]
async fn whoever_catches_a_panic_outside_answers_and_inside_is_the_handler() {
    async fn answer(is_outside: bool) -> (StatusCode, Outcome) {
        let (tell, told) = std::sync::mpsc::channel();
        let handler = service_fn(move |request: Request<()>| {
            handle(&request).hook({
                let tell = tell.clone();
                move |outcome| tell.send(outcome.clone()).unwrap()
            });
            async {
                if true {
                    panic!("in the handler")
                } else {
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            }
        });
        let (layer, catch) = (AfterResponseLayer::default(), CatchPanicLayer::new());
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
            match told.try_recv() {
                Ok(outcome) => break outcome,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        (status, outcome)
    }
    let (status, outcome) = answer(true).await;
    assert_eq!((status, outcome.end, outcome.status), (StatusCode::INTERNAL_SERVER_ERROR, End::HandlerError, None));
    let (status, outcome) = answer(false).await;
    assert_eq!((status, outcome.end, outcome.status), (StatusCode::INTERNAL_SERVER_ERROR, End::Complete, Some(status)));
}

#[tokio::test]
async fn a_panic_in_call_itself_is_the_handlers() {
    let mut outcome = None;
    let service = service_fn(|request: Request<()>| -> std::future::Ready<Answer> {
        outcome = Some(told(&handle(&request)));
        panic!("in call")
    });
    let mut service = AfterResponseLayer::default().layer(service);
    let call = std::panic::catch_unwind(AssertUnwindSafe(|| drop(service.call(Request::new(())))));
    assert!(call.is_err());
    drop(service);
    assert_eq!(ended(outcome).await, (End::HandlerError, Some("panicked".to_owned())));
}

#[tokio::test]
async fn a_handler_that_is_dropped_before_its_head_made_no_response_b10() {
    for polls in 0..2 {
        let mut outcome = None;
        let service = service_fn(|request: Request<()>| {
            outcome = Some(told(&handle(&request)));
            std::future::pending::<Answer>()
        });
        let mut service = AfterResponseLayer::default().layer(service);
        let mut call = service.call(Request::new(()));
        (0..polls).for_each(|_| assert!((&mut call).now_or_never().is_none()));
        drop(call);
        drop(service);
        assert_eq!(ended(outcome).await, (End::NoResponse, None));
    }
}

#[tokio::test]
async fn wherever_the_future_is_dropped_its_hooks_are_called_here() {
    for elsewhere in [|call| drop(tokio::spawn(async { drop(call) })), |call| drop(std::thread::spawn(|| drop(call)))] {
        let elsewhere: fn(Box<dyn Send>) = elsewhere;
        let mut outcome = None;
        let service = service_fn(|request: Request<()>| {
            outcome = Some(told(&handle(&request)));
            std::future::pending::<Answer>()
        });
        let mut service = AfterResponseLayer::default().layer(service);
        elsewhere(Box::new(service.call(Request::new(()))));
        drop(service);
        assert_eq!(ended(outcome).await, (End::NoResponse, None));
    }
}

#[tokio::test]
async fn a_body_that_panics_failed() {
    let mut outcome = None;
    let handler = async |after: AfterResponse| -> Answer {
        outcome = Some(told(&after));
        Ok(Response::new(Script::new([Step::Data(6), Step::Panic])))
    };
    let mut body = respond(&AfterResponseLayer::default(), Request::new(()), handler).await.unwrap().into_body();
    assert!(frame(&mut body).is_some());
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| frame(&mut body))).is_err());
    drop(body);
    assert_eq!(ended(outcome).await, (End::BodyError, Some("panicked".to_owned())));
}

/// Panics when it is asked for its length (`true`), or for its end after a frame (`false`).
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
async fn a_body_that_panics_when_it_is_asked_about_itself_failed() {
    for (rude, end) in [(true, End::HandlerError), (false, End::BodyError)] {
        let mut outcome = None;
        let handler = async |after: AfterResponse| {
            outcome = Some(told(&after));
            Ok::<_, Infallible>(Response::new(Rude(rude)))
        };
        let layer = AfterResponseLayer::default();
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
async fn what_panics_in_its_drop_keeps_no_hook_from_being_called() {
    let (mut of_handler, mut of_body) = (None, None);
    let service = service_fn(|request: Request<()>| {
        of_handler = Some(told(&handle(&request)));
        let bomb = Bomb;
        async move {
            let _bomb = bomb;
            std::future::pending::<Answer>().await
        }
    });
    let mut service = AfterResponseLayer::default().layer(service);
    let call = service.call(Request::new(()));
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| drop(call))).is_err());
    drop(service);
    assert_eq!(ended(of_handler).await, (End::NoResponse, None));

    let handler = async |after: AfterResponse| {
        of_body = Some(told(&after));
        let bomb = Bomb;
        let frames = futures_util::stream::repeat_with(move || {
            let _bomb = &bomb;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data")))
        });
        Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(frames)))
    };
    let mut response = respond(&AfterResponseLayer::default(), Request::new(()), handler).await.unwrap();
    assert!(frame(response.body_mut()).is_some());
    assert!(std::panic::catch_unwind(AssertUnwindSafe(|| drop(response))).is_err());
    assert_eq!(ended(of_body).await, (End::Aborted, None));
}
