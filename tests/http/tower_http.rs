//! The layer together with layers of tower-http.

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
    OffloadLayer, ThreadPool, cancelled,
    pool::{Pool, Run},
};

use crate::support::{self, Http1, Latch, one_thread, pool, request, serve, within};

const SHORT: Duration = Duration::from_millis(50);

fn timeout() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SHORT)
}

/// A connection to a server whose pool has one blocked thread. `/first` has a timeout, `/second`
/// has none, and `/ping` is not offloaded.
struct BlockedServer {
    pool: ThreadPool,
    latch: Latch,
    held: Run<()>,
    connection: Http1,
    /// The path of each request that was handled.
    handled: UnboundedReceiver<String>,
}

impl BlockedServer {
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

    async fn survives_timeout_of(&mut self, first: http::Request<Body>) {
        assert_eq!(self.connection.send(first).await.status, StatusCode::REQUEST_TIMEOUT);
        self.connection.get("/ping").await.assert_ok("pong"); // the connection is usable
        self.latch.open();
        self.connection.send(request(Method::POST, "/second", "hello")).await.assert_ok("hello");
        (&mut self.held).await.unwrap();
        assert_eq!(self.handled.recv().await.as_deref(), Some("/second"), "the first request never ran");
        assert_eq!(self.pool.stats().abandoned, 1);
    }
}

#[tokio::test]
async fn timeout_of_a_queued_call_keeps_the_connection_usable() {
    within(async {
        let first = request(Method::GET, "/first", Body::empty());
        BlockedServer::new().await.survives_timeout_of(first).await;
    })
    .await;
}

/// The body of the request is not read.
#[tokio::test]
async fn timeout_of_a_queued_post_keeps_the_connection_usable() {
    within(async {
        let first = request(Method::POST, "/first", "unread");
        BlockedServer::new().await.survives_timeout_of(first).await;
    })
    .await;
}

/// The body takes more than one read. It is dropped with the call, so hyper skips the rest and
/// continues with the next request.
#[tokio::test]
async fn timeout_of_a_queued_upload_keeps_the_connection_usable() {
    within(async {
        let first = request(Method::POST, "/first", vec![b'x'; 20_000]);
        BlockedServer::new().await.survives_timeout_of(first).await;
    })
    .await;
}

/// Sends requests until one times out after its handler has started. On a busy machine the timeout
/// may fire before that.
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
async fn timeout_cancels_a_running_handler() {
    within(async {
        let (latch, (results, mut result)) = (Latch::new(), unbounded_channel());
        let handler = {
            let latch = latch.clone();
            async move || {
                latch.block();
                results.send(cancelled()).unwrap();
            }
        };
        let router = Router::new().route("/", get(handler)).layer(OffloadLayer::new(pool(1))).layer(timeout());
        times_out_after(|| latch.unseen() > 0, router).await;
        latch.open();
        assert_eq!(result.recv().await, Some(true));
    })
    .await;
}

#[tokio::test]
async fn timeout_drops_a_handler_that_awaits() {
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

#[tokio::test]
async fn timeout_inside_the_layer_works() {
    within(async {
        let handler = async || std::future::pending::<()>().await;
        let router = Router::new().route("/", get(handler)).layer(timeout()).layer(OffloadLayer::new(pool(1)));
        assert_eq!(support::get(serve(router).await, "/").await.status, StatusCode::REQUEST_TIMEOUT);
    })
    .await;
}

#[tokio::test]
async fn catch_panic_outside_receives_the_payload() {
    within(async {
        let panics = async |request: Request| -> &'static str { panic!("on {}", request.uri().path()) };
        let pool = pool(1);
        let respond = |payload: Box<dyn Any + Send>| {
            let message = payload.downcast_ref::<String>().cloned().unwrap_or_default();
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        };
        let stack =
            ServiceBuilder::new().layer(CatchPanicLayer::custom(respond)).layer(OffloadLayer::new(pool.clone()));
        let router = Router::new().route("/purpose", get(panics)).route("/", get(async || "ok")).layer(stack);
        let mut connection = Http1::connect(serve(router).await).await;
        let response = connection.get("/purpose").await;
        assert_eq!((response.status, response.text()), (StatusCode::INTERNAL_SERVER_ERROR, "on /purpose"));
        connection.get("/").await.assert_ok("ok"); // the only thread is alive
        assert_eq!((pool.stats().panicked, pool.threads()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn catch_panic_outside_receives_payloads_of_any_type() {
    within(async {
        let panics = async || -> &'static str { std::panic::panic_any(StatusCode::IM_A_TEAPOT) };
        let respond = |payload: Box<dyn Any + Send>| payload.downcast_ref::<StatusCode>().unwrap().into_response();
        let router = Router::new()
            .route("/", get(panics))
            .layer(OffloadLayer::new(pool(1)))
            .layer(CatchPanicLayer::custom(respond));
        assert_eq!(support::get(serve(router).await, "/").await.status, StatusCode::IM_A_TEAPOT);
    })
    .await;
}

/// Without a layer that catches panics, the effect is the same as without `OffloadLayer`.
#[tokio::test]
async fn panic_closes_only_its_connection() {
    within(async {
        let panics = async || -> &'static str { panic!("expected panic") };
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

    /// Records the events of a test.
    #[derive(Clone)]
    pub(crate) struct Log(Arc<Mutex<Vec<Line>>>);

    struct Line {
        text: String,
        /// The name of the innermost span.
        span: Option<&'static str>,
    }

    /// Subscribes this thread, and the work whose context is captured on it, until the guard is
    /// dropped.
    pub(crate) fn subscribe(log: &Log) -> DefaultGuard {
        // With only one dispatcher, tracing caches the interest of the thread that reaches an event
        // first, and disables the event for all threads if it has no subscriber. A second
        // dispatcher prevents that.
        static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
        LazyLock::force(&SECOND);
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

/// Checks an offloaded handler, before and after an await, and a handler of `axum::blocking`.
#[tokio::test]
async fn span_of_trace_layer_is_current_on_the_pool() {
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
                tracing::info!("event on the pool");
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
        assert_eq!(log.span_of("event on the pool"), Some("the_request"));
    })
    .await;
}

/// The polls of two requests alternate on one thread.
#[tokio::test]
async fn interleaved_calls_have_their_own_spans() {
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
