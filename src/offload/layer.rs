use std::{fmt, sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{
    Carry, CarryRequest, Everything, Filter, FilterRequest, Http, Offload, Prioritize, PrioritizeRequest, With,
    admission::{Admission, Mode},
    service::Config,
};
use crate::{
    head::Head,
    pool::{CallError, Pool, Priority},
};

/// Runs the services it wraps on a pool.
///
/// See the [module docs](self::super). Options are set before the layer is used. Clones share one bound
/// ([`max_in_flight`](Self::max_in_flight)); setting an option makes a layer of its own.
pub struct OffloadLayer<X = Http, A = Everything> {
    config: Config<X, A>,
}

impl OffloadLayer {
    /// Offloads everything to that pool; a call that finds it full is answered at once.
    pub fn new(pool: impl Pool) -> Self {
        Self {
            config: Config {
                pool: pool.into_shared(),
                admission: Arc::new(Admission::new()),
                reject: Http,
                inspect: Everything,
                detached: false,
                catch_panics: false,
            },
        }
    }
}

impl<X, A> OffloadLayer<X, A> {
    /// At most so many calls of this layer at once, queued, running or awaiting. Default: unlimited, as without the layer;
    /// only the pool's queue is bounded then, and calls that await are not in it.
    ///
    /// A call owns its place until its work ends, though its caller may have left. A call within a call of the same layer
    /// shares its place.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[must_use]
    #[track_caller]
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        assert!(calls > 0, "`max_in_flight(0)` lets no call in: give it at least 1, or leave it out for no limit");
        self.config.admission = Arc::new(self.config.admission.with_max_in_flight(calls));
        self
    }

    /// A call that finds no room waits for it, at most for so long, in the order of arrival; then it is answered
    /// [`CallError::Overloaded`].
    ///
    /// At most 1024 calls wait ([`max_waiting`](Self::max_waiting)). Waiting needs tokio's timer: outside a runtime, in
    /// one without `enable_time`, and in one that shuts down, such a call is answered [`CallError::NoRuntime`].
    #[must_use]
    pub fn wait(mut self, at_most: Duration) -> Self {
        self.config.admission = Arc::new(self.config.admission.with_mode(Mode::Wait(at_most)));
        self
    }

    /// At most so many calls [`wait`](Self::wait) at once; one more is answered [`CallError::Overloaded`] at once.
    /// Default: 1024; with 0 nobody waits.
    #[must_use]
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.config.admission = Arc::new(self.config.admission.with_max_waiting(calls));
        self
    }

    /// While there is no room, `poll_ready` is pending, without bound; `call` spends what `poll_ready` reserved.
    ///
    /// For callers that hold one service and wait for it, as `Buffer`, `Balance` or a client's loop do. Not for servers:
    /// hyper and axum ready a clone for each request, so requests would pile up without bound. A service that is ready
    /// and not called keeps its place and slot from others.
    #[must_use]
    pub fn backpressure(mut self) -> Self {
        self.config.admission = Arc::new(self.config.admission.with_mode(Mode::Backpressure));
        self
    }

    /// The work goes on when its caller leaves, and its end is logged. Default: it is cancelled.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.config.detached = true;
        self
    }

    /// A panic of the work is answered as [`CallError::Panicked`], a 500 with the default strategy. Default: it is resumed
    /// in the caller with its payload, as if nothing had moved, so that `CatchPanicLayer` keeps working.
    #[must_use]
    pub fn catch_panics(mut self) -> Self {
        self.config.catch_panics = true;
        self
    }

    /// How a call is answered that the pool does not carry out: [`Http`] (the default),
    /// [`Problem`](super::Problem), [`Typed`](super::Typed), or a [`Reject`](super::Reject) of your own.
    #[must_use]
    pub fn reject<Y>(self, strategy: Y) -> OffloadLayer<Y, A> {
        let Config { pool, admission, inspect, detached, catch_panics, .. } = self.config;
        OffloadLayer { config: Config { pool, admission, reject: strategy, inspect, detached, catch_panics } }
    }

    /// As [`reject`](Self::reject), with a closure.
    ///
    /// ```
    /// use axum::{Router, response::IntoResponse, routing::post};
    /// use tower_offload::{OffloadLayer, CallError, ThreadPool};
    ///
    /// let busy = |rejection: CallError| Ok((http::StatusCode::TOO_MANY_REQUESTS, rejection.to_string()).into_response());
    /// let app: Router = Router::new()
    ///     .route("/hash", post(async || "hash"))
    ///     .layer(OffloadLayer::new(ThreadPool::cpu()).reject_with(busy));
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn reject_with<F, Res, E>(self, answer: F) -> OffloadLayer<With<F>, A>
    where
        F: Fn(CallError) -> Result<Res, E>,
    {
        self.reject(With::new(answer))
    }

    /// Offloads only HTTP requests of which the closure says so, and those only that earlier filters let through; the rest
    /// is called where it is.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu()).filter(|head| head.uri().path() != "/ping");
    /// let app: Router = Router::new().route("/ping", get(async || "pong")).layer(layer);
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn filter<F>(self, predicate: F) -> OffloadLayer<X, Filter<A, F>>
    where
        F: Fn(&Head<'_>) -> bool + Send + Sync + 'static,
    {
        self.inspect(|inner| Filter::new(inner, predicate))
    }

    /// As [`filter`](Self::filter), for requests that are not HTTP: `.filter_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn filter_request<F, Req>(self, predicate: F) -> OffloadLayer<X, FilterRequest<A, F>>
    where
        F: Fn(&Req) -> bool + Send + Sync + 'static,
    {
        self.inspect(|inner| FilterRequest::new(inner, predicate))
    }

    /// Says how urgent each HTTP request is among those that wait for a thread. Default: [`Priority::Normal`].
    ///
    /// Said twice, the last one counts. [`Low`](Priority::Low) is refused once half of the pool's queue is taken, and
    /// [`Release`](Priority::Release) has places of its own, in the pool and in this layer; but with
    /// [`wait`](Self::wait) a `Low` call waits for a place as any other does, and with
    /// [`backpressure`](Self::backpressure) the place is reserved before the request is known, so that the priority
    /// decides the order only.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_offload::{OffloadLayer, ThreadPool, offload::Priority};
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu()).priority(|head| match head.uri().path() {
    ///     "/report" => Priority::Low,
    ///     "/search" => Priority::High,
    ///     _ => Priority::Normal,
    /// });
    /// let app: Router = Router::new().route("/report", get(async || "rows")).layer(layer);
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn priority<F>(self, priority: F) -> OffloadLayer<X, Prioritize<A, F>>
    where
        F: Fn(&Head<'_>) -> Priority + Send + Sync + 'static,
    {
        self.inspect(|inner| Prioritize::new(inner, priority))
    }

    /// As [`priority`](Self::priority), for requests that are not HTTP: `.priority_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn priority_request<F, Req>(self, priority: F) -> OffloadLayer<X, PrioritizeRequest<A, F>>
    where
        F: Fn(&Req) -> Priority + Send + Sync + 'static,
    {
        self.inspect(|inner| PrioritizeRequest::new(inner, priority))
    }

    /// Takes a value along to the pool, such as a task-local of an outer layer.
    ///
    /// `capture` reads the value where the call is made; `scope` puts it in place around each poll of the work and around
    /// its drop, and must call its second argument.
    ///
    /// ```
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// tokio::task_local! {
    ///     static TENANT: String;
    /// }
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu())
    ///     .carry(|_head| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
    /// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(async || "")).layer(layer);
    /// ```
    #[must_use]
    pub fn carry<V, C, P>(self, capture: C, scope: P) -> OffloadLayer<X, Carry<A, C, P>>
    where
        C: Fn(&Head<'_>) -> V + Send + Sync + 'static,
        P: Fn(V, &mut dyn FnMut()) + Send + Sync + 'static,
        V: Clone + Send + 'static,
    {
        self.inspect(|inner| Carry::new(inner, capture, scope))
    }

    /// As [`carry`](Self::carry), for requests that are not HTTP: `.carry_request(|request: &MyRequest| .., ..)`.
    #[must_use]
    pub fn carry_request<V, C, P, Req>(self, capture: C, scope: P) -> OffloadLayer<X, CarryRequest<A, C, P>>
    where
        C: Fn(&Req) -> V + Send + Sync + 'static,
        P: Fn(V, &mut dyn FnMut()) + Send + Sync + 'static,
        V: Clone + Send + 'static,
    {
        self.inspect(|inner| CarryRequest::new(inner, capture, scope))
    }

    fn inspect<B>(self, wrap: impl FnOnce(A) -> B) -> OffloadLayer<X, B> {
        let Config { pool, admission, reject, inspect, detached, catch_panics } = self.config;
        let inspect = wrap(inspect);
        OffloadLayer { config: Config { pool, admission, reject, inspect, detached, catch_panics } }
    }
}

impl<S, X: Clone, A: Clone> Layer<S> for OffloadLayer<X, A> {
    type Service = Offload<S, X, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Offload::new(inner, self.config.clone())
    }
}

impl<X: Clone, A: Clone> Clone for OffloadLayer<X, A> {
    fn clone(&self) -> Self {
        Self { config: self.config.clone() }
    }
}

impl<X, A> fmt::Debug for OffloadLayer<X, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OffloadLayer")
            .field("pool", &self.config.pool)
            .field("admission", &self.config.admission)
            .field("detached", &self.config.detached)
            .field("catch_panics", &self.config.catch_panics)
            .finish_non_exhaustive()
    }
}
