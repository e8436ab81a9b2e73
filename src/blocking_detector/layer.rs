use std::{borrow::Cow, sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{Blocked, BlockingDetector, ByHead, ByPath, ByRequest, Fixed, watch::Settings};
use crate::head::Head;

/// Says which of the services it wraps hold the thread for too long.
///
/// See the [module docs](self::super).
#[derive(Debug, Clone)]
pub struct BlockingDetectorLayer<N = ByPath> {
    settings: Arc<Settings>,
    naming: N,
}

/// See [`BlockingDetectorLayer::threshold`].
const THRESHOLD: Duration = Duration::from_millis(10);

impl BlockingDetectorLayer {
    /// Names HTTP requests by axum's matched path or by the path, and reports what takes more than 10 ms.
    pub fn new() -> Self {
        let settings = Settings {
            threshold: THRESHOLD,
            on_blocking: None,
            #[cfg(feature = "metrics")]
            labels: Arc::default(),
        };
        Self { settings: Arc::new(settings), naming: ByPath }
    }
}

impl<N> BlockingDetectorLayer<N> {
    /// What takes longer is reported. Default: 10 ms.
    ///
    /// The rule of thumb for async code is [10 to 100 µs between two awaits][blocking], and `tokio-metrics` calls a poll
    /// [slow from 50 µs][slow] on. So little is hardly worth a warning: a hop to a pool and back costs tens of microseconds,
    /// and a thread can be off its core for some milliseconds just because others want it. What stands out at 10 ms blocks;
    /// every other request on that thread notices it, and offloading it pays. Lower it on a quiet machine to find the rest.
    ///
    /// [blocking]: https://ryhl.io/blog/async-what-is-blocking/
    /// [slow]: https://docs.rs/tokio-metrics/latest/tokio_metrics/struct.TaskMonitor.html#associatedconstant.DEFAULT_SLOW_POLL_THRESHOLD
    #[must_use]
    pub fn threshold(mut self, threshold: Duration) -> Self {
        self.settings = Arc::new(Settings { threshold, ..Settings::clone(&self.settings) });
        self
    }

    /// Told of each report, with or without the features `tracing` and `metrics`. A second one replaces the first.
    ///
    /// It runs on the thread that was held, which it holds for longer: hand the report on, or count it. Its panic is caught
    /// and goes no further than the panic hook.
    #[must_use]
    pub fn on_blocking<F>(mut self, callback: F) -> Self
    where
        F: Fn(&Blocked<'_>) + Send + Sync + 'static,
    {
        let on_blocking = Some(Arc::new(callback) as _);
        self.settings = Arc::new(Settings { on_blocking, ..Settings::clone(&self.settings) });
        self
    }

    /// Names every request the same, HTTP or not: for a service that does one thing.
    #[must_use]
    pub fn named(self, name: impl Into<Arc<str>>) -> BlockingDetectorLayer<Fixed> {
        BlockingDetectorLayer { settings: self.settings, naming: Fixed::new(name.into()) }
    }

    /// Names HTTP requests by their head. The closure runs for every request, whether it blocks or not: an allocation in
    /// it is one for each request.
    ///
    /// ```
    /// use tower_offload::blocking_detector::BlockingDetectorLayer;
    ///
    /// let layer = BlockingDetectorLayer::new()
    ///     .route(|head| if head.uri().path().starts_with("/admin/") { "admin" } else { "public" });
    /// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(async || "")).layer(layer);
    /// ```
    #[must_use]
    pub fn route<F, T>(self, route: F) -> BlockingDetectorLayer<ByHead<F>>
    where
        F: Fn(&Head<'_>) -> T + Send + Sync + 'static,
        T: Into<Cow<'static, str>>,
    {
        BlockingDetectorLayer { settings: self.settings, naming: ByHead::new(route) }
    }

    /// As [`route`](Self::route), for requests that are not HTTP: `.route_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn route_request<F, T, Req>(self, route: F) -> BlockingDetectorLayer<ByRequest<F>>
    where
        F: Fn(&Req) -> T + Send + Sync + 'static,
        T: Into<Cow<'static, str>>,
    {
        BlockingDetectorLayer { settings: self.settings, naming: ByRequest::new(route) }
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
