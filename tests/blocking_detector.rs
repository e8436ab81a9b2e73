//! The blocking detector on plain tower and in axum's routers, on a paused clock that services
//! advance.
#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, panic_any, resume_unwind},
    sync::{Arc, LazyLock, Mutex, mpsc},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::Method;
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_offload::blocking_detector::{Blocked, BlockingDetectorLayer, Step};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Blocks the thread for `time` on the paused clock. The first poll of `advance` moves the clock.
fn block(time: Duration) {
    let _ = tokio::time::advance(time).now_or_never();
}

/// An owned copy of a [`Blocked`].
#[derive(Debug, Clone, PartialEq)]
struct Report {
    route: String,
    method: Option<Method>,
    step: Step,
    duration: Duration,
}

#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<Report>>>);

impl Reports {
    fn callback(&self) -> impl Fn(&Blocked<'_>) + Send + Sync + 'static {
        let reports = self.clone();
        move |blocked| {
            reports.0.lock().unwrap().push(Report {
                route: blocked.route().to_owned(),
                method: blocked.method().cloned(),
                step: blocked.step(),
                duration: blocked.duration(),
            });
        }
    }

    fn take(&self) -> Vec<Report> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn routes(&self) -> Vec<String> {
        self.take().into_iter().map(|report| report.route).collect()
    }
}

/// Returns a service that blocks for the given milliseconds in `call` and then in each poll of its
/// future.
fn blocks(
    times: &'static [u64],
) -> impl Service<&'static str, Response = &'static str, Error = Infallible, Future: Send> + Clone {
    service_fn(move |request| {
        let mut polls = times.iter().map(|&time| MILLISECOND * u32::try_from(time).unwrap());
        block(polls.next().unwrap());
        poll_fn(move |cx| {
            if let Some(time) = polls.next() {
                block(time);
            }
            if polls.len() > 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(Ok(request))
        })
    })
}

#[tokio::test(start_paused = true)]
async fn call_and_each_poll_are_measured_separately() {
    let reports = Reports::default();
    let layer = BlockingDetectorLayer::new().threshold(5 * MILLISECOND).named("numbered");
    let service = layer.on_blocking(reports.callback()).layer(blocks(&[6, 5, 0, 7, 4, 4]));
    assert_eq!(service.oneshot("response").await, Ok("response"));
    let report = |step, time| Report { route: "numbered".to_owned(), method: None, step, duration: time * MILLISECOND };
    assert_eq!(reports.take(), [report(Step::Call, 6), report(Step::Poll(3), 7)], "only steps above the threshold");
}

#[tokio::test(start_paused = true)]
async fn default_threshold_is_10_ms() {
    let reports = Reports::default();
    let layer = BlockingDetectorLayer::default().named("default").on_blocking(reports.callback());
    layer.layer(blocks(&[0, 10])).oneshot("").await.unwrap();
    assert_eq!(reports.take(), []);
    layer.layer(blocks(&[0, 11])).oneshot("").await.unwrap();
    assert_eq!(reports.take().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn time_spent_awaiting_is_not_reported() {
    let reports = Reports::default();
    let layer = BlockingDetectorLayer::new().named("sleeper").on_blocking(reports.callback());
    let sleeper = service_fn(async |()| {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok::<_, Infallible>(())
    });
    layer.layer(sleeper).oneshot(()).await.unwrap();
    assert_eq!(reports.take(), []);
}

#[tokio::test(start_paused = true)]
async fn panicking_step_is_reported_and_its_panic_resumed() {
    let reports = Reports::default();
    let layer = BlockingDetectorLayer::new().named("panics").on_blocking(reports.callback());
    let in_call = service_fn(|(): ()| -> std::future::Ready<Result<(), Infallible>> {
        block(20 * MILLISECOND);
        panic_any(1_u8)
    });
    let in_poll = service_fn(async |()| -> Result<(), Infallible> {
        block(30 * MILLISECOND);
        panic_any(2_u8)
    });
    let in_call = AssertUnwindSafe(layer.layer(in_call).oneshot(())).catch_unwind().await.unwrap_err();
    let in_poll = AssertUnwindSafe(layer.layer(in_poll).oneshot(())).catch_unwind().await.unwrap_err();
    assert_eq!((in_call.downcast_ref(), in_poll.downcast_ref()), (Some(&1_u8), Some(&2_u8)));
    let seen: Vec<_> = reports.take().into_iter().map(|report| (report.step, report.duration)).collect();
    assert_eq!(seen, [(Step::Call, 20 * MILLISECOND), (Step::Poll(1), 30 * MILLISECOND)]);
}

#[tokio::test(start_paused = true)]
async fn panicking_callback_does_not_affect_the_response() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new("the payload's drop"));
        }
    }
    let layer = BlockingDetectorLayer::new().named("callback");
    let panics = layer.clone().on_blocking(|_| resume_unwind(Box::new("the callback")));
    assert_eq!(panics.layer(blocks(&[20, 20, 20])).oneshot("response").await, Ok("response"));
    let layer = layer.on_blocking(|_| resume_unwind(Box::new(Bomb)));
    assert_eq!(layer.layer(blocks(&[20, 20, 20])).oneshot("response").await, Ok("response"));
    // The panic of the work is resumed.
    let panics = service_fn(async |()| -> Result<(), Infallible> {
        block(20 * MILLISECOND);
        panic_any("the work")
    });
    let payload = AssertUnwindSafe(layer.layer(panics).oneshot(())).catch_unwind().await.unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"the work"));
}

#[tokio::test(start_paused = true)]
async fn future_is_send_if_closures_capture_a_static_str() {
    let reports = Reports::default();
    let prefix: &'static str = String::from("job ").leak();
    let layer = BlockingDetectorLayer::new().route_request(move |request: &String| format!("{prefix}{request}"));
    let service = layer.on_blocking(reports.callback()).layer(service_fn(move |request: String| {
        block(20 * MILLISECOND);
        std::future::ready(Ok::<_, Infallible>(request + prefix))
    }));
    let response = tokio::spawn(async move { service.oneshot("7".to_owned()).await });
    assert_eq!(response.await.unwrap().unwrap(), "7job ");
    assert_eq!(reports.routes(), ["job 7"]);
}

/// A service that is neither `Clone` nor `Send`, and not ready again after a call.
struct Unshared {
    ready: Poll<()>,
    called: std::rc::Rc<()>,
}

impl Service<u8> for Unshared {
    type Response = std::rc::Rc<()>;
    type Error = String;
    type Future = std::future::Ready<Result<Self::Response, String>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let before = std::mem::replace(&mut self.ready, Poll::Ready(()));
        cx.waker().wake_by_ref();
        before.map(Ok)
    }

    fn call(&mut self, request: u8) -> Self::Future {
        assert!(self.ready.is_ready(), "called before it was ready");
        self.ready = Poll::Pending;
        std::future::ready(if request == 0 { Err("zero".to_owned()) } else { Ok(self.called.clone()) })
    }
}

#[test]
fn detector_is_transparent_outside_of_a_runtime() {
    let inner = Unshared { ready: Poll::Pending, called: std::rc::Rc::default() };
    let mut service =
        task::spawn(BlockingDetectorLayer::new().route_request(|request: &u8| request.to_string()).layer(inner));
    for _ in 0..2 {
        assert_pending!(service.enter(|cx, mut service| service.poll_ready(cx)));
        assert!(service.is_woken());
        assert_ready_ok!(service.enter(|cx, mut service| service.poll_ready(cx)));
        assert!(service.call(1).now_or_never().unwrap().is_ok());
    }
    service.get_mut().ready = Poll::Ready(());
    assert_eq!(service.call(0).now_or_never().unwrap(), Err("zero".to_owned()));
    assert!(service.get_ref().ready.is_pending());
    assert_eq!(std::rc::Rc::strong_count(&service.into_inner().into_inner().called), 1);
}

mod names {
    use ::axum::{Router, body::Body, routing::get};
    use http::Request;

    use super::*;

    fn request(method: Method, uri: &str) -> Request<Body> {
        Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
    }

    async fn slow() -> &'static str {
        block(20 * MILLISECOND);
        "slow"
    }

    async fn get_all<const N: usize>(
        app: impl Service<Request<Body>, Response: std::fmt::Debug, Error: std::fmt::Debug> + Clone,
        uris: [&str; N],
    ) {
        for uri in uris {
            app.clone().oneshot(request(Method::GET, uri)).await.unwrap();
        }
    }

    fn layer(reports: &Reports) -> BlockingDetectorLayer {
        BlockingDetectorLayer::new().on_blocking(reports.callback())
    }

    #[tokio::test(start_paused = true)]
    async fn http_request_is_named_by_method_and_path() {
        let reports = Reports::default();
        let inner = service_fn(async |_: Request<Body>| {
            block(20 * MILLISECOND);
            Ok::<_, Infallible>(())
        });
        let service = layer(&reports).layer(inner);
        service.clone().oneshot(request(Method::PUT, "http://host/users/7?token=secret")).await.unwrap();
        service.clone().oneshot(request(Method::OPTIONS, "*")).await.unwrap();
        service.clone().oneshot(request(Method::CONNECT, "host:443")).await.unwrap();
        let seen: Vec<_> = reports.take().into_iter().map(|it| (it.method.unwrap(), it.route)).collect();
        let expected = [(Method::PUT, "/users/7"), (Method::OPTIONS, "*"), (Method::CONNECT, "")];
        assert_eq!(seen, expected.map(|(method, route)| (method, route.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn closures_name_requests() {
        let reports = Reports::default();
        let inner = service_fn(async |_: Request<Body>| {
            block(20 * MILLISECOND);
            Ok::<_, Infallible>(())
        });
        let borrowed = layer(&reports).route(|head| if head.method() == Method::GET { "read" } else { "write" });
        let owned = layer(&reports).route(|head| format!("{} {}", head.method(), head.uri().path()));
        get_all(borrowed.layer(inner), ["/a"]).await;
        get_all(owned.layer(inner), ["/a"]).await;
        let seen: Vec<_> = reports.take().into_iter().map(|it| (it.method.unwrap(), it.route)).collect();
        assert_eq!(seen, [(Method::GET, "read".to_owned()), (Method::GET, "GET /a".to_owned())]);
        let by_request = BlockingDetectorLayer::new().route_request(|request: &&'static str| *request);
        by_request.on_blocking(reports.callback()).layer(blocks(&[0, 20])).oneshot("a request").await.unwrap();
        assert_eq!(reports.routes(), ["a request"]);
    }
    #[tokio::test(start_paused = true)]
    async fn both_kinds_of_axum_layer_see_the_matched_path() {
        let reports = Reports::default();
        let users = || Router::new().route("/users/{id}", get(slow).put(slow));
        get_all(users().layer(layer(&reports)), ["/users/1", "/users/2"]).await;
        get_all(users().route_layer(layer(&reports)), ["/users/3"]).await;
        assert_eq!(reports.routes(), ["/users/{id}"; 3]);

        // Nested routers, with the layer inside, outside, and on the method router.
        let inside = Router::new().nest("/api", users().layer(layer(&reports)));
        get_all(inside, ["/api/users/1"]).await;
        let outside = Router::new().nest("/api", users()).layer(layer(&reports));
        get_all(outside, ["/api/users/1"]).await;
        let on_method = Router::new().route("/{name}", get(slow).layer(layer(&reports)));
        get_all(on_method, ["/users"]).await;
        assert_eq!(reports.routes(), ["/api/users/{id}", "/api/users/{id}", "/{name}"]);
    }
    #[tokio::test(start_paused = true)]
    async fn axum_request_without_a_matched_route_is_named_by_path() {
        let reports = Reports::default();
        let app = || Router::new().route("/", get(slow)).fallback(slow);
        get_all(app().layer(layer(&reports)), ["/nowhere"]).await;
        assert_eq!(reports.routes(), ["/nowhere"]);
        get_all(app().route_layer(layer(&reports)), ["/nowhere"]).await;
        assert!(reports.take().is_empty(), "`route_layer` does not wrap the fallback");
        // Around the router, before it matches.
        let around = layer(&reports).layer(Router::new().route("/users/{id}", get(slow)));
        get_all(around, ["/users/1"]).await;
        assert_eq!(reports.routes(), ["/users/1"]);
        // Outside and inside of a router that is nested as a service.
        let users = || Router::new().route("/users/{id}", get(slow));
        get_all(Router::new().nest_service("/api", users()).layer(layer(&reports)), ["/api/users/1"]).await;
        get_all(Router::new().nest_service("/api", users().layer(layer(&reports))), ["/api/users/1"]).await;
        assert_eq!(reports.routes(), ["/api/users/1", "/api/users/{id}"]);
    }
}

/// Maximum time that a test waits for the watchdog.
const LIMIT: Duration = Duration::from_secs(60);

/// A report about a step that has not ended.
#[derive(Debug)]
struct Still {
    report: Report,
    thread: Option<String>,
    id: Option<u32>,
}

/// A thread that polls a service which blocks until [`Stuck::end`].
struct Stuck {
    latch: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Stuck {
    /// Ends the poll and waits for the thread.
    fn end(self) {
        self.latch.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

/// Polls a service on a thread that is named like the route, by the given function. Returns the
/// reports that arrive while the poll lasts.
fn stuck(
    route: &'static str,
    layer: BlockingDetectorLayer,
    run: impl FnOnce(BoxFuture<'static, ()>) + Send + 'static,
) -> (Stuck, mpsc::Receiver<Still>) {
    let ((latch, opened), (reports, seen)) = (mpsc::channel(), mpsc::channel());
    let layer = layer.named(route).on_still_blocking(move |blocked| {
        let report = Report {
            route: blocked.route().to_owned(),
            method: blocked.method().cloned(),
            step: blocked.step(),
            duration: blocked.duration(),
        };
        let thread = blocked.thread_name().map(str::to_owned);
        let _ = reports.send(Still { report, thread, id: blocked.thread_id() });
    });
    let opened = Arc::new(Mutex::new(opened));
    let service = layer.layer(service_fn(move |()| {
        let opened = opened.clone();
        async move {
            opened.lock().unwrap().recv().unwrap();
            Ok::<_, Infallible>(())
        }
    }));
    let work = async move { service.oneshot(()).await.unwrap() }.boxed();
    let thread = thread::Builder::new().name(route.to_owned()).spawn(move || run(work)).unwrap();
    (Stuck { latch, thread }, seen)
}

/// Runs a future in a service of this layer with this name, on a runtime of this thread.
fn runtime_within(route: &'static str, layer: BlockingDetectorLayer, work: BoxFuture<'static, ()>) {
    let work = Mutex::new(Some(work));
    let inner = service_fn(move |()| {
        let work = work.lock().unwrap().take().unwrap();
        async {
            work.await;
            Ok::<_, Infallible>(())
        }
    });
    runtime(async move { layer.named(route).layer(inner).oneshot(()).await.unwrap() });
}

/// Runs a future on a runtime of this thread.
fn runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work);
}

mod while_it_lasts {
    use super::*;

    #[test]
    fn poll_is_reported_before_it_ends_and_when_it_has_ended() {
        let reports = Reports::default();
        let layer = BlockingDetectorLayer::new().on_blocking(reports.callback());
        // A busy machine may delay the call itself, too.
        let of_the_poll = || reports.take().into_iter().filter(|it| it.step == Step::Poll(1)).collect::<Vec<_>>();
        let (stuck, seen) = stuck("lasts", layer, runtime);
        let Still { report, thread, id } = seen.recv_timeout(LIMIT).unwrap();
        assert_eq!(of_the_poll(), [], "the poll has not ended");
        assert_eq!((&*report.route, report.step, report.method), ("lasts", Step::Poll(1), None));
        assert!(report.duration >= 100 * MILLISECOND, "{:?}", report.duration);
        assert_eq!(thread.as_deref(), Some("lasts"));
        if cfg!(target_os = "linux") {
            let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", id.unwrap())).unwrap();
            assert_eq!(name.trim_end(), "lasts");
        }
        stuck.end();
        let ended = of_the_poll();
        assert!(ended.len() == 1 && ended[0].duration >= report.duration, "{ended:?}");
    }

    #[test]
    fn endless_poll_is_reported_again_when_its_duration_has_doubled() {
        let (stuck, seen) = stuck("endless", BlockingDetectorLayer::new(), runtime);
        let durations: Vec<_> = (0..4).map(|_| seen.recv_timeout(LIMIT).unwrap().report.duration).collect();
        stuck.end();
        // A report is due at 100 ms times a power of two. A late one counts for all before it.
        let due: Vec<_> = durations.iter().map(|duration| (duration.as_millis() / 100).ilog2()).collect();
        assert!(due.is_sorted_by(|before, after| before < after), "{durations:?}");
    }

    #[test]
    fn threshold_above_100_ms_is_awaited() {
        let layer = BlockingDetectorLayer::new().threshold(400 * MILLISECOND);
        let (stuck, seen) = stuck("patient", layer, runtime);
        let report = seen.recv_timeout(LIMIT).unwrap().report;
        stuck.end();
        assert!(report.duration >= 400 * MILLISECOND, "{report:?}");
    }

    #[test]
    fn paused_clock_of_a_runtime_does_not_pause_the_watchdog() {
        let (stuck, seen) = stuck("paused", BlockingDetectorLayer::new(), |work| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true).build().unwrap().block_on(work);
        });
        assert_eq!(seen.recv_timeout(LIMIT).unwrap().report.route, "paused");
        stuck.end();
    }

    #[test]
    fn several_runtimes_are_watched_at_once() {
        fn workers() -> tokio::runtime::Runtime {
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("worker").build().unwrap()
        }
        let layer = BlockingDetectorLayer::new;
        let stuck = [
            stuck("current thread", layer(), runtime),
            stuck("local set", layer(), |work| {
                runtime(async { tokio::task::LocalSet::new().run_until(work).await });
            }),
            stuck("worker", layer(), |work| {
                let runtime = workers();
                runtime.block_on(runtime.spawn(work)).unwrap();
            }),
            stuck("block in place", layer(), |work| {
                let runtime = workers();
                let inner = async { tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work)) };
                runtime.block_on(runtime.spawn(inner)).unwrap();
            }),
            stuck("no runtime", layer(), |work| work.now_or_never().unwrap()),
        ];
        let threads = stuck.each_ref().map(|(_, seen)| seen.recv_timeout(LIMIT).unwrap().thread.unwrap());
        stuck.into_iter().for_each(|(stuck, _)| stuck.end());
        assert_eq!(threads, ["current thread", "local set", "worker", "worker", "no runtime"]);
    }

    #[test]
    fn every_layer_around_a_blocked_service_reports() {
        let (outer, reported) = mpsc::channel();
        let (stuck, seen) = stuck("inner", BlockingDetectorLayer::new(), |work| {
            let layer = BlockingDetectorLayer::new()
                .on_still_blocking(move |blocked| outer.send(blocked.route().to_owned()).unwrap_or_default());
            runtime_within("outer", layer, work);
        });
        assert_eq!(seen.recv_timeout(LIMIT).unwrap().report.route, "inner");
        assert_eq!(reported.recv_timeout(LIMIT).unwrap(), "outer");
        stuck.end();
    }

    #[test]
    fn panicking_callback_does_not_end_the_watchdog() {
        let panics = BlockingDetectorLayer::new().on_still_blocking(|_| resume_unwind(Box::new("it")));
        let (stuck, seen) = stuck("after a panic", BlockingDetectorLayer::new(), move |work| {
            runtime_within("panics", panics, work);
        });
        for _ in 0..2 {
            seen.recv_timeout(LIMIT).unwrap();
        }
        stuck.end();
    }
}

mod metrics {
    use std::collections::BTreeMap;

    use ::metrics::set_default_local_recorder;
    use http::Request;
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    /// Returns counts and sums by metric and route.
    fn measured(recorder: &DebuggingRecorder) -> BTreeMap<(String, String), f64> {
        let snapshot = recorder.snapshotter().snapshot().into_vec();
        let value = |value| match value {
            DebugValue::Counter(value) => value as f64,
            DebugValue::Gauge(value) => value.0,
            DebugValue::Histogram(values) => values.iter().map(|value| value.0).sum(),
        };
        let entry = |(key, _, _, it): (metrics_util::CompositeKey, _, _, _)| {
            let labels: Vec<_> = key.key().labels().map(|label| (label.key(), label.value())).collect();
            assert!(matches!(labels[..], [("route", _)]), "{labels:?}");
            ((key.key().name().to_owned(), labels[0].1.to_owned()), value(it))
        };
        snapshot.into_iter().map(entry).collect()
    }

    fn path(path: String) -> Request<()> {
        Request::builder().uri(path).body(()).unwrap()
    }

    fn slow() -> impl Service<Request<()>, Response = (), Error = Infallible> + Clone {
        service_fn(async |_| {
            block(20 * MILLISECOND);
            Ok(())
        })
    }

    #[tokio::test(start_paused = true)]
    async fn reports_are_recorded_by_route() {
        let recorder = DebuggingRecorder::new();
        let _here = set_default_local_recorder(&recorder);
        let layer = BlockingDetectorLayer::new().named("measured");
        layer.layer(blocks(&[20, 0, 500])).oneshot("").await.unwrap();
        let expected = [("offload_blocking_seconds", 0.52), ("offload_blocking_total", 2.0)];
        let key = |name: &str| (name.to_owned(), "measured".to_owned());
        assert_eq!(measured(&recorder), expected.map(|(name, value)| (key(name), value)).into());
    }

    /// The watchdog's thread uses the global recorder. No other test of this file does.
    #[test]
    fn gauge_counts_threads_that_are_blocked_now() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().unwrap();
        let wait_until = |is_expected: fn(f64) -> bool| {
            let limit = tokio::time::Instant::now() + LIMIT;
            while tokio::time::Instant::now() < limit {
                let snapshot = snapshotter.snapshot().into_vec();
                let gauge = snapshot.iter().find_map(|(key, unit, help, value)| match value {
                    DebugValue::Gauge(value) if key.key().name() == "offload_blocked_threads" => {
                        assert!(unit.is_some() && help.is_some());
                        Some(value.0)
                    }
                    _ => None,
                });
                if gauge.is_some_and(is_expected) {
                    return;
                }
                thread::sleep(MILLISECOND); // the watchdog's thread sends no notification
            }
            panic!("the gauge has not changed");
        };
        let (stuck, seen) = stuck("gauge", BlockingDetectorLayer::new(), runtime);
        seen.recv_timeout(LIMIT).unwrap();
        wait_until(|threads| threads >= 1.0);
        stuck.end();
        wait_until(|threads| threads == 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn labels_that_clients_choose_are_limited_to_100() {
        let (recorder, reports) = (DebuggingRecorder::new(), Reports::default());
        let _here = set_default_local_recorder(&recorder);
        let layer = BlockingDetectorLayer::new().on_blocking(reports.callback());
        let long = format!("/{}", "x".repeat(256));
        layer.layer(slow()).oneshot(path(long.clone())).await.unwrap();
        for number in 0..150 {
            // A new service each time, as axum creates one for each route.
            layer.layer(slow()).oneshot(path(format!("/{number}"))).await.unwrap();
        }
        layer.layer(slow()).oneshot(path("/0".to_owned())).await.unwrap();
        assert_eq!(reports.take().len(), 152, "reports are not limited");
        let counted = measured(&recorder);
        let count = |route: &str| counted.get(&("offload_blocking_total".to_owned(), route.to_owned())).copied();
        let values = (count("/0"), count("/99"), count("/100"), count(&long), count("other"));
        assert_eq!(values, (Some(2.0), Some(1.0), None, None, Some(51.0)));
    }
    #[tokio::test(start_paused = true)]
    async fn matched_paths_are_not_limited() {
        use ::axum::{Router, body::Body, routing::get};
        let recorder = DebuggingRecorder::new();
        let _here = set_default_local_recorder(&recorder);
        let slow = async || block(20 * MILLISECOND);
        let app = (0..120).fold(Router::new(), |app, number| app.route(&format!("/{number}/{{id}}"), get(slow)));
        let app = app.layer(BlockingDetectorLayer::new());
        for number in 0..120 {
            app.clone().oneshot(path(format!("/{number}/x")).map(|()| Body::empty())).await.unwrap();
        }
        let counted = measured(&recorder);
        assert_eq!(counted.len(), 240);
        assert!(counted.keys().all(|(_, route)| route.ends_with("/{id}")), "{counted:?}");
    }
}
mod events {
    use std::fmt::Debug;

    use tracing::{Event, Level, Subscriber, field::Field, subscriber::set_default};
    use tracing_subscriber::{layer::SubscriberExt, registry};

    use super::*;

    #[derive(Clone, Default)]
    struct Events(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Events {
        fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            assert_eq!(*event.metadata().level(), Level::WARN);
            let mut text = String::new();
            event.record(&mut |field: &Field, value: &dyn Debug| text += &format!("{}={value:?} ", field.name()));
            self.0.lock().unwrap().push(text.trim_end().to_owned());
        }
    }

    /// Events on threads without a subscriber of their own, such as the watchdog.
    static GLOBAL: LazyLock<Events> = LazyLock::new(Events::default);

    /// Sets a global subscriber, so that tracing does not cache the event as disabled when the
    /// thread of another test reaches it first.
    fn set_global_subscriber() {
        let _ = tracing::subscriber::set_global_default(registry().with(GLOBAL.clone()));
    }

    #[test]
    fn event_while_a_poll_lasts_names_route_and_thread() {
        set_global_subscriber();
        let (stuck, seen) = stuck("event while it lasts", BlockingDetectorLayer::new(), runtime);
        let report = seen.recv_timeout(LIMIT).unwrap();
        // The event precedes the callback.
        let event = GLOBAL.0.lock().unwrap().iter().find(|it| it.contains("event while it lasts")).cloned().unwrap();
        stuck.end();
        let start = r#"message=thread still blocked route="event while it lasts" duration_seconds="#;
        assert!(event.starts_with(start), "{event}");
        let id = report.id.map_or(String::new(), |id| format!(" thread_id={id}"));
        assert!(event.ends_with(&format!(r#" poll=1 thread="event while it lasts"{id}"#)), "{event}");
    }

    #[tokio::test(start_paused = true)]
    async fn report_is_one_warning() {
        set_global_subscriber();
        let events = Events::default();
        let _here = set_default(registry().with(events.clone()));
        let slow = service_fn(async |_: http::Request<()>| {
            block(250 * MILLISECOND);
            Ok::<_, Infallible>(())
        });
        let request = http::Request::post("/hash?password=secret").body(()).unwrap();
        BlockingDetectorLayer::new().layer(slow).oneshot(request).await.unwrap();
        BlockingDetectorLayer::new().named("job").layer(blocks(&[11, 0])).oneshot("").await.unwrap();
        let expected = [
            r#"message=thread blocked route="/hash" method="POST" duration_seconds=0.25 poll=1"#,
            r#"message=thread blocked route="job" duration_seconds=0.011 poll=0"#,
        ];
        assert_eq!(*events.0.lock().unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn panicking_subscriber_does_not_affect_response_or_callback() {
        struct Panics;
        impl<S: Subscriber> tracing_subscriber::Layer<S> for Panics {
            fn on_event(&self, _: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
                resume_unwind(Box::new("the subscriber"));
            }
        }
        let _here = set_default(registry().with(Panics));
        let reports = Reports::default();
        let layer = BlockingDetectorLayer::new().named("job").on_blocking(reports.callback());
        assert_eq!(layer.layer(blocks(&[20, 0])).oneshot("response").await, Ok("response"));
        assert_eq!(reports.routes(), ["job"]);
    }
}
