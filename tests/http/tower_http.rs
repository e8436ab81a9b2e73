//! tower-http's layers around this one work as if nothing had moved.

use std::{any::Any, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::{any, get},
};
use http::Method;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tower::ServiceBuilder;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use tower_offload::{
    OffloadLayer, ThreadPool,
    offload::cancelled,
    pool::{Pool, Run},
};

use crate::support::{self, Http1, Latch, one_thread, pool, request, serve, within};

const SHORT: Duration = Duration::from_millis(50);

fn timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SHORT)
}

/// A server that offloads to a pool whose one thread is held, and one connection to it. `/first` has a timeout; `/second`
/// has none; `/ping` is not offloaded.
struct BehindAHeldThread {
    pool: ThreadPool,
    latch: Latch,
    held: Run<()>,
    connection: Http1,
    /// The path of each request that was handled.
    handled: UnboundedReceiver<String>,
}

impl BehindAHeldThread {
    async fn new() -> Self {
        let (pool, latch, (handles, handled)) = (one_thread(8), Latch::new(), unbounded_channel());
        let held = pool.run({
            let latch = latch.clone();
            move || latch.block()
        });
        latch.reached().await;
        let handler = async move |uri: Uri, body: String| {
            handles.send(uri.path().to_owned()).unwrap();
            body
        };
        let layer = OffloadLayer::new(pool.clone());
        let first = Router::new().route("/first", any(handler.clone())).layer(layer.clone()).layer(timeout());
        let second = Router::new().route("/second", any(handler)).layer(layer);
        let router = first.merge(second).route("/ping", get(async || "pong"));
        let connection = Http1::connect(serve(router).await).await;
        Self { pool, latch, held, connection, handled }
    }

    async fn outlives_a_timeout_of(&mut self, first: http::Request<Body>) {
        assert_eq!(self.connection.send(first).await.status, StatusCode::REQUEST_TIMEOUT);
        let ping = tokio::time::timeout(Duration::from_secs(5), self.connection.get("/ping")).await;
        ping.expect("the connection is as stuck as the pool").assert_ok("pong");
        self.latch.open();
        self.connection.send(request(Method::POST, "/second", "hello")).await.assert_ok("hello");
        (&mut self.held).await.unwrap();
        assert_eq!(self.handled.recv().await.as_deref(), Some("/second"), "the first never ran");
        assert_eq!(self.pool.stats().abandoned, 1);
    }
}

/// P18
#[tokio::test]
async fn a_timeout_of_a_queued_call_leaves_the_connection_alive() {
    within(async {
        let first = request(Method::GET, "/first", Body::empty());
        BehindAHeldThread::new().await.outlives_a_timeout_of(first).await;
    })
    .await;
}

/// P18: with a request body that nobody has read.
#[tokio::test]
async fn a_timeout_of_a_queued_post_leaves_the_connection_alive() {
    within(async {
        let first = request(Method::POST, "/first", "unread");
        BehindAHeldThread::new().await.outlives_a_timeout_of(first).await;
    })
    .await;
}

/// P18: with a request body of more than one read. Without the layer this passes: the handler's future is dropped, and
/// the body with it, so hyper reads over the rest and goes on to the next request.
#[tokio::test]
async fn a_timeout_of_a_queued_upload_leaves_the_connection_alive() {
    within(async {
        let first = request(Method::POST, "/first", vec![b'x'; 20_000]);
        BehindAHeldThread::new().await.outlives_a_timeout_of(first).await;
    })
    .await;
}

/// Has a request time out whose handler has started. On a busy machine a timeout may come first; then the handler never
/// runs, and the next request has another try.
async fn times_out_after(mut started: impl FnMut() -> bool, router: Router) {
    let address = serve(router).await;
    loop {
        assert_eq!(support::get(address, "/").await.status, StatusCode::REQUEST_TIMEOUT);
        if started() {
            break;
        }
    }
}

#[tokio::test]
async fn a_timeout_cancels_the_running_handler() {
    within(async {
        let (latch, (answers, mut answer)) = (Latch::new(), unbounded_channel());
        let handler = {
            let latch = latch.clone();
            async move || {
                latch.block();
                answers.send(cancelled()).unwrap();
            }
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool(1))).layer(timeout());
        times_out_after(|| latch.unseen() > 0, router).await;
        latch.open();
        assert_eq!(answer.recv().await, Some(true));
    })
    .await;
}

#[tokio::test]
async fn a_timeout_drops_the_handler_that_awaits() {
    within(async {
        struct OnDrop(tokio::sync::mpsc::UnboundedSender<()>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let ((starts, mut started), (drops, mut dropped)) = (unbounded_channel(), unbounded_channel());
        let handler = async move || {
            let _guard = OnDrop(drops.clone());
            starts.send(()).unwrap();
            std::future::pending::<()>().await;
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool(1))).layer(timeout());
        times_out_after(|| started.try_recv().is_ok(), router).await;
        dropped.recv().await.unwrap();
    })
    .await;
}

/// Inside the layer a timeout's timer runs on the pool.
#[tokio::test]
async fn a_timeout_within_the_layer_works() {
    within(async {
        let handler = async || std::future::pending::<()>().await;
        let router = Router::new().route("/", get(handler)).layer(timeout()).layer(OffloadLayer::new(pool(1)));
        assert_eq!(support::get(serve(router).await, "/").await.status, StatusCode::REQUEST_TIMEOUT);
    })
    .await;
}

/// P6
#[tokio::test]
async fn catch_panic_outside_sees_the_payload() {
    within(async {
        let panics = async |request: Request| -> &'static str { panic!("on {}", request.uri().path()) };
        let pool = pool(1);
        let answer = |payload: Box<dyn Any + Send>| {
            let message = payload.downcast_ref::<String>().cloned().unwrap_or_default();
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        };
        let stack = ServiceBuilder::new().layer(CatchPanicLayer::custom(answer)).layer(OffloadLayer::new(pool.clone()));
        let router = Router::new().route("/purpose", get(panics)).route("/", get(async || "ok")).layer(stack);
        let mut connection = Http1::connect(serve(router).await).await;
        let answer = connection.get("/purpose").await;
        assert_eq!((answer.status, answer.text()), (StatusCode::INTERNAL_SERVER_ERROR, "on /purpose"));
        connection.get("/").await.assert_ok("ok"); // the only thread is there
        assert_eq!((pool.stats().panicked, pool.threads()), (1, 1));
    })
    .await;
}

/// P6: a payload that is no text arrives as it is.
#[tokio::test]
async fn catch_panic_outside_sees_a_payload_of_any_type() {
    within(async {
        let panics = async || -> &'static str { std::panic::panic_any(StatusCode::IM_A_TEAPOT) };
        let answer = |payload: Box<dyn Any + Send>| payload.downcast_ref::<StatusCode>().unwrap().into_response();
        let router = Router::new()
            .route("/", get(panics))
            .layer(OffloadLayer::new(pool(1)))
            .layer(CatchPanicLayer::custom(answer));
        assert_eq!(support::get(serve(router).await, "/").await.status, StatusCode::IM_A_TEAPOT);
    })
    .await;
}

/// P6: without anything that catches it a panic ends its connection, and no other, as it does without the layer.
#[tokio::test]
async fn a_panic_ends_its_connection_only() {
    within(async {
        let panics = async || -> &'static str { panic!("on purpose") };
        let router = Router::new().route("/panic", get(panics)).route("/", get(async || "ok"));
        let address = serve(router.layer(OffloadLayer::new(pool(1)))).await;
        let (mut one, mut other) = (Http1::connect(address).await, Http1::connect(address).await);
        other.get("/").await.assert_ok("ok");
        one.try_send(request(Method::GET, "/panic", Body::empty())).await.unwrap_err();
        other.get("/").await.assert_ok("ok");
        support::get(address, "/").await.assert_ok("ok");
    })
    .await;
}
pub(crate) use self::tracing_log::{Log, subscribe};
mod tracing_log {
    use std::{
        fmt,
        sync::{Arc, LazyLock, Mutex},
    };

    use tracing::{
        Dispatch, Event, Subscriber,
        field::{Field, Visit},
        subscriber::{DefaultGuard, NoSubscriber},
    };
    use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

    /// The events of a test.
    #[derive(Clone)]
    pub(crate) struct Log(Arc<Mutex<Vec<Line>>>);

    struct Line {
        text: String,
        /// The name of the innermost one.
        span: Option<&'static str>,
    }

    /// From now on, on this thread and in what is captured here.
    pub(crate) fn subscribe(log: &Log) -> DefaultGuard {
        // While there is but one dispatcher, tracing asks that of the thread which comes upon an event first, and switches
        // the event off for all if that thread belongs to a test without any. So there are always two.
        static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
        LazyLock::force(&ANOTHER);
        tracing_subscriber::registry().with(log.clone()).set_default()
    }

    impl Log {
        pub(crate) fn new() -> Self {
            Self(Arc::default())
        }

        pub(crate) fn has(&self, text: &str) -> bool {
            self.0.lock().unwrap().iter().any(|line| line.text.contains(text))
        }

        pub(crate) fn span_of(&self, text: &str) -> Option<&'static str> {
            self.0.lock().unwrap().iter().find(|line| line.text.contains(text))?.span
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
        fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
            struct Text(String);
            impl Visit for Text {
                fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                    self.0.push_str(&format!("{field}={value:?} "));
                }
            }
            let mut text = Text(String::new());
            event.record(&mut text);
            let span = context.event_span(event).map(|span| span.name());
            self.0.lock().unwrap().push(Line { text: text.0, span });
        }
    }
}

/// E12: the span of the request is current in the sync handler, the same one, and after an await, and in `blocking`.
#[tokio::test]
async fn the_span_of_trace_layer_is_current_on_the_pool() {
    use std::sync::{Arc, Mutex};

    use tower_http::trace::TraceLayer;
    use tracing::{Span, span::Id};

    within(async {
        let log = Log::new();
        let _subscribed = subscribe(&log);
        let made = Arc::new(Mutex::new(Vec::new()));
        let make_span = {
            let made = made.clone();
            move |_: &Request| {
                let span = tracing::info_span!("the_request");
                made.lock().unwrap().push(span.id().unwrap());
                span
            }
        };
        let (sees, mut seen) = unbounded_channel::<Option<Id>>();
        let offloaded = {
            let sees = sees.clone();
            async move || {
                assert!(support::is_pool_thread(&support::thread_name()));
                sees.send(Span::current().id()).unwrap();
                tokio::task::yield_now().await;
                sees.send(Span::current().id()).unwrap();
                tracing::info!("said on the pool");
            }
        };
        let router = Router::new().route("/", get(offloaded)).layer(OffloadLayer::new(pool(2)));
        let router = router.route(
            "/blocking",
            get(tower_offload::axum::blocking(pool(2), move || {
                assert!(support::is_pool_thread(&support::thread_name()));
                sees.send(Span::current().id()).unwrap();
                sees.send(Span::current().id()).unwrap();
            })),
        );
        let address = serve(router.layer(TraceLayer::new_for_http().make_span_with(make_span))).await;
        let paths: &[&str] = &["/", "/blocking"];
        for path in paths {
            support::get(address, path).await.assert_ok("");
            let made = made.lock().unwrap().pop();
            assert!(made.is_some());
            assert_eq!((seen.recv().await, seen.recv().await), (Some(made.clone()), Some(made)));
        }
        assert_eq!(log.span_of("said on the pool"), Some("the_request"));
    })
    .await;
}

/// E12: two requests at once on one thread, each with its own span, though their polls take turns.
#[tokio::test]
async fn each_of_two_calls_that_take_turns_has_its_own_span() {
    use std::sync::Arc;

    use tokio::sync::Barrier;
    use tower_http::trace::TraceLayer;

    within(async {
        let log = Log::new();
        let _subscribed = subscribe(&log);
        let barrier = Arc::new(Barrier::new(2));
        let handler = async move |request: Request| {
            let path = request.uri().path().to_owned();
            tracing::info!("{path} before");
            barrier.wait().await;
            tracing::info!("{path} after");
        };
        let make_span = |request: &Request| match request.uri().path() {
            "/one" => tracing::info_span!("one"),
            _ => tracing::info_span!("two"),
        };
        let router = Router::new()
            .fallback(handler)
            .layer(OffloadLayer::new(pool(1)))
            .layer(TraceLayer::new_for_http().make_span_with(make_span));
        let address = serve(router).await;
        let (one, two) = tokio::join!(support::get(address, "/one"), support::get(address, "/two"));
        one.assert_ok("");
        two.assert_ok("");
        for (event, span) in
            [("/one before", "one"), ("/one after", "one"), ("/two before", "two"), ("/two after", "two")]
        {
            assert_eq!(log.span_of(event), Some(span), "{event}");
        }
    })
    .await;
}
