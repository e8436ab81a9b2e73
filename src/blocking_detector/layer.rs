use std::{borrow::Cow, sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{
    blocked::Blocked,
    naming::{ByPath, FixedName, Name, RouteFn, RouteOf, RouteOfHead},
    service::BlockingDetector,
    watch::Settings,
};
use crate::request_head::{OfHead, OfRequest, RequestHead};

/// Reports the services that block the thread for longer than a threshold.
///
/// See the [module docs](self::super).
#[derive(Debug, Clone)]
pub struct BlockingDetectorLayer<N = ByPath> {
    settings: Arc<Settings>,
    naming: N,
}

/// The default of [`BlockingDetectorLayer::threshold`].
const DEFAULT_THRESHOLD: Duration = Duration::from_millis(10);

impl BlockingDetectorLayer {
    /// Creates a layer that reports steps that take longer than 10 ms, and names HTTP requests by
    /// axum's matched path or by their path.
    #[must_use]
    pub fn new() -> Self {
        let settings = Settings {
            threshold: DEFAULT_THRESHOLD,
            on_blocking: None,
            on_still_blocking: None,
            #[cfg(feature = "metrics")]
            labels: Arc::default(),
        };
        Self { settings: Arc::new(settings), naming: ByPath }
    }

    #[cfg(all(test, not(tower_offload_loom)))]
    pub(super) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }
}

impl<N> BlockingDetectorLayer<N> {
    /// Sets the duration above which `call` or a poll is reported. Default: 10 ms.
    ///
    /// The rule of thumb for async code is [10 to 100 µs between two awaits][blocking], and
    /// `tokio-metrics` calls a poll [slow from 50 µs][slow] on. Such short polls do not justify a
    /// warning: a hop to a pool and back costs tens of microseconds, and the operating system can
    /// preempt a thread for some milliseconds. Above 10 ms every other task on the thread is
    /// delayed noticeably, and offloading pays. Use a lower threshold on a quiet machine to find
    /// more.
    ///
    /// [blocking]: https://ryhl.io/blog/async-what-is-blocking/
    /// [slow]: https://docs.rs/tokio-metrics/latest/tokio_metrics/struct.TaskMonitor.html#associatedconstant.DEFAULT_SLOW_POLL_THRESHOLD
    #[must_use]
    pub fn threshold(mut self, threshold: Duration) -> Self {
        self.settings = Arc::new(Settings { threshold, ..Settings::clone(&self.settings) });
        self
    }

    /// Sets a callback for reports of steps that have ended, in addition to the features `tracing`
    /// and `metrics`. A later call replaces the callback.
    ///
    /// The callback runs on the blocked thread and blocks it further, so send the report elsewhere
    /// or count it. A panic of the callback is caught.
    #[must_use]
    pub fn on_blocking<F>(mut self, callback: F) -> Self
    where
        F: Fn(&Blocked<'_>) + Send + Sync + 'static,
    {
        let on_blocking = Some(Arc::new(callback) as _);
        self.settings = Arc::new(Settings { on_blocking, ..Settings::clone(&self.settings) });
        self
    }

    /// Sets a callback for steps that have not ended, in addition to feature `tracing`. A later
    /// call replaces the callback.
    ///
    /// It is called after 100 ms, or after the [threshold](Self::threshold) if that is longer, and
    /// again each time the duration has doubled. See [while it
    /// lasts](self::super#while-it-lasts).
    ///
    /// The callback runs on the watchdog's thread and delays the other reports of the process. A
    /// panic of the callback is caught.
    ///
    /// ```
    /// use tower_offload::blocking_detector::BlockingDetectorLayer;
    ///
    /// let layer = BlockingDetectorLayer::new().on_still_blocking(|blocked| {
    ///     let (route, thread) = (blocked.route(), blocked.thread_name().unwrap_or("?"));
    ///     println!("{route} has blocked thread {thread} for {:?} so far", blocked.duration());
    /// });
    /// # use axum::{Router, routing::get};
    /// # let _: Router = Router::new().route("/", get(async || "")).layer(layer);
    /// ```
    #[must_use]
    pub fn on_still_blocking<F>(mut self, callback: F) -> Self
    where
        F: Fn(&Blocked<'_>) + Send + Sync + 'static,
    {
        let on_still_blocking = Some(Arc::new(callback) as _);
        self.settings = Arc::new(Settings { on_still_blocking, ..Settings::clone(&self.settings) });
        self
    }

    /// Gives every request the same name, HTTP or not.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> BlockingDetectorLayer<FixedName> {
        BlockingDetectorLayer { settings: self.settings, naming: FixedName::new(name.into()) }
    }

    /// Names HTTP requests with a closure. It runs for every request, including those that do not
    /// block.
    ///
    /// ```
    /// use tower_offload::blocking_detector::BlockingDetectorLayer;
    ///
    /// let layer = BlockingDetectorLayer::new()
    ///     .route(|head| if head.uri().path().starts_with("/admin/") { "admin" } else { "other" });
    /// # use axum::{Router, routing::get};
    /// # let _: Router = Router::new().route("/", get(async || "")).layer(layer);
    /// ```
    #[must_use]
    pub fn route<F, T>(self, route: F) -> BlockingDetectorLayer<RouteFn<OfHead<RouteOfHead>>>
    where
        F: Fn(&RequestHead<'_>) -> T + Send + Sync + 'static,
        T: Into<Cow<'static, str>>,
    {
        BlockingDetectorLayer {
            settings: self.settings,
            naming: RouteFn::new(OfHead::new(Box::new(move |head: &RequestHead<'_>| Name::from_closure(route(head))))),
        }
    }

    /// Like [`route`](Self::route), for requests that are not HTTP:
    /// `.route_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn route_request<F, T, Req>(self, route: F) -> BlockingDetectorLayer<RouteFn<OfRequest<RouteOf<Req>>>>
    where
        F: Fn(&Req) -> T + Send + Sync + 'static,
        T: Into<Cow<'static, str>>,
    {
        BlockingDetectorLayer {
            settings: self.settings,
            naming: RouteFn::new(OfRequest::new(Box::new(move |request: &Req| Name::from_closure(route(request))))),
        }
    }
}

impl Default for BlockingDetectorLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, N: Clone> Layer<S> for BlockingDetectorLayer<N> {
    type Service = BlockingDetector<S, N>;

    fn layer(&self, inner: S) -> Self::Service {
        BlockingDetector::new(inner, self.settings.clone(), self.naming.clone())
    }
}
