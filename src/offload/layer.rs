use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use tower_layer::Layer;

use super::{
    adaptive::Route,
    admission::{Limiter, Limits, Mode},
    inspect::{FairBy, FairByGroup, Filter, OffloadAll, Prioritize, Propagate, Timeout},
    reject::{HttpReject, RejectFn},
    service::{Config, Offload},
};
use crate::{
    grpc,
    pool::{CallError, Pool, Priority},
    request_head::{OfHead, OfRequest, RequestHead},
};

/// Reads the timeout of a gRPC request. See [`OffloadLayer::grpc_timeout`].
type GrpcTimeout = fn(&RequestHead<'_>) -> Option<Duration>;

/// Runs the services it wraps on a pool.
///
/// Clones share one limit ([`max_in_flight`](Self::max_in_flight)). A layer with a changed limit,
/// wait or backpressure has a limit of its own, so set options before cloning. See the [module
/// docs](self::super).
pub struct OffloadLayer<X = HttpReject, A = OffloadAll> {
    config: Config<X, A>,
}

impl OffloadLayer {
    /// Creates a layer that offloads every request to `pool` and rejects calls while the pool is
    /// full or [overloaded](crate::pool#overload).
    #[must_use]
    pub fn new(pool: impl Pool) -> Self {
        Self {
            config: Config {
                pool: pool.into_shared(),
                limiter: Arc::new(Limiter::new(Limits::default())),
                reject: HttpReject,
                inspect: OffloadAll,
                detached: false,
                catch_panics: false,
                route: None,
            },
        }
    }
}

impl<X, A> OffloadLayer<X, A> {
    /// Sets the maximum number of calls in flight through this layer: queued, running or awaiting.
    ///
    /// By default there is no limit: only the pool's queue is bounded, and calls that await are not
    /// in the queue.
    ///
    /// A call counts until its work ends, even if its caller has left. A call within a call of the
    /// same layer shares the outer call's permit.
    ///
    /// # Panics
    ///
    /// Panics if `calls` is 0.
    #[must_use]
    #[track_caller]
    pub fn max_in_flight(self, calls: usize) -> Self {
        assert!(calls > 0, "`max_in_flight(0)` admits no call: use at least 1, or omit it for no limit");
        self.limit(|limits| limits.max_in_flight = Some(calls))
    }

    /// Sets the maximum number of calls in flight with the same key: queued, running or awaiting. A
    /// further call of that key is rejected with [`CallError::KeyLimited`], by default with the
    /// status 429, or [waits](Self::wait). Calls without a key are not limited, so this has no
    /// effect without [`fair_by`](Self::fair_by).
    ///
    /// By default there is no such limit, because a key that is alone may use all threads. Keys
    /// with calls in flight take some hundred bytes each; others are not stored. A key of a
    /// [group](Self::fair_by_group) is limited, its group is not.
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu())
    ///     .fair_by(|head| head.headers().get("x-tenant").cloned()) // set by a proxy of yours
    ///     .max_in_flight_per_key(8);
    /// # let _: Router = Router::new().route("/", post(async || "")).layer(layer);
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if `calls` is 0.
    #[must_use]
    #[track_caller]
    pub fn max_in_flight_per_key(self, calls: usize) -> Self {
        assert!(calls > 0, "`max_in_flight_per_key(0)` admits no call: use at least 1, or omit it for no limit");
        self.limit(|limits| limits.max_in_flight_per_key = Some(calls))
    }

    /// Lets calls wait up to `timeout` for capacity, in the order of arrival, before they are
    /// rejected with [`CallError::Overloaded`]. If they have [keys](Self::fair_by), the keys take
    /// turns, and a call whose key has used its share at the end of the wait, while others have
    /// room, is rejected with [`CallError::KeyLimited`].
    ///
    /// At most 1024 calls wait at once (see [`max_waiting`](Self::max_waiting)). Waiting requires
    /// tokio's timer: outside a runtime, in a runtime without `enable_time`, and in a runtime that
    /// is shutting down, such a call is rejected with [`CallError::NoRuntime`].
    #[must_use]
    pub fn wait(self, timeout: Duration) -> Self {
        self.limit(|limits| limits.mode = Mode::Wait(timeout))
    }

    /// Sets the maximum number of calls that [`wait`](Self::wait) at once; another call is rejected
    /// at once with [`CallError::Overloaded`]. Default: 1024. With 0 no call waits.
    #[must_use]
    pub fn max_waiting(self, calls: usize) -> Self {
        self.limit(|limits| limits.max_waiting = calls)
    }

    /// Makes `poll_ready` reserve capacity for one call, and stay pending while there is none.
    ///
    /// Use it for callers that hold one service and wait for it, such as `Buffer`, `Balance` or the
    /// loop of a client. Do not use it in a server: hyper and axum poll a clone for each request,
    /// so requests would pile up without a bound. A service that is ready and not called keeps its
    /// capacity from others. The callers decide how many calls there are, so an
    /// [overload](crate::pool#overload) of the pool has no effect on them.
    ///
    /// Use it on one layer of a stack, the outermost one on its pool: while a service waits for a
    /// permit, it keeps those that services inside it have reserved. If two layers on the same pool
    /// use it, the service panics when it is polled ready. (Axum polls the layers of a router ready
    /// one after the other, so there it does not.) If they are on two pools, every stack must have
    /// them in the same order.
    #[must_use]
    pub fn backpressure(self) -> Self {
        self.limit(|limits| limits.mode = Mode::Backpressure)
    }

    /// Lets the work continue when its caller leaves, and logs its end. By default the work is
    /// cancelled.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.config.detached = true;
        self
    }

    /// Answers a panic of the work with [`CallError::Panicked`], which is a 500 by default.
    ///
    /// Without this option the panic is resumed in the caller with its payload, as if the work had
    /// run there, so that `CatchPanicLayer` keeps working.
    #[must_use]
    pub fn catch_panics(mut self) -> Self {
        self.config.catch_panics = true;
        self
    }

    /// Runs short calls on the caller's thread, where they cost less than a hop to the pool.
    ///
    /// After 64 calls that each returned their response within 50 us and without awaiting, calls
    /// run where they are made. If more than about 3 % of them take longer or await, calls are
    /// offloaded again. A call that awaits continues on the pool. `PoolStats::in_place` counts the
    /// calls that ran where they were made. If a call occupies its caller's thread for more than
    /// 1 ms, the event `call blocked its caller's thread` is emitted, and every call is offloaded
    /// for a minute. The event is in the span of the request, whose fields name the route if a
    /// layer outside of this one records it, such as `tower_http::trace::TraceLayer`. Only one call
    /// at a time runs on a caller's thread. So at most one call per minute delays other tasks by
    /// more than 1 ms, and only those of one thread.
    ///
    /// The calls of this layer and its clones are judged together, because axum may apply a layer
    /// once per connection. So give a handler whose calls are short a layer of its own:
    /// `get(handler).layer(OffloadLayer::new(pool).adaptive())`.
    ///
    /// Admission, limits, panics, cancellation and metrics are those of an offloaded call. The work
    /// has to be able to run on a thread of the runtime: `Handle::block_on` and
    /// `blocking_recv` panic there, and thread-locals that the pool's threads have are missing.
    /// After a panic on a caller's thread, calls are offloaded for a minute, because the thread may
    /// be its reason. The work runs inside `call` of this service, so a caller that holds a lock
    /// which the work takes deadlocks.
    ///
    /// Whoever can choose how long a call takes can block one thread once per minute, so do not
    /// use this for work whose length depends on its input.
    #[must_use]
    pub fn adaptive(mut self) -> Self {
        self.config.route = Some(Arc::new(Route::new(self.config.pool.clone())));
        self
    }

    /// Sets how the layer answers a call that fails with a [`CallError`]: [`HttpReject`] (the
    /// default), [`ProblemJson`](super::ProblemJson), [`RejectWithError`](super::RejectWithError),
    /// or another [`Reject`](super::Reject).
    #[must_use]
    pub fn reject<Y>(self, strategy: Y) -> OffloadLayer<Y, A> {
        let Config { pool, limiter, inspect, detached, catch_panics, route, .. } = self.config;
        OffloadLayer { config: Config { pool, limiter, reject: strategy, inspect, detached, catch_panics, route } }
    }

    /// Like [`reject`](Self::reject), with a closure.
    ///
    /// ```
    /// use axum::{Router, response::IntoResponse, routing::post};
    /// use tower_offload::{CallError, OffloadLayer, ThreadPool};
    ///
    /// let status = http::StatusCode::TOO_MANY_REQUESTS;
    /// let busy = move |error: CallError| Ok((status, error.to_string()).into_response());
    /// let app: Router = Router::new()
    ///     .route("/hash", post(async || "hash"))
    ///     .layer(OffloadLayer::new(ThreadPool::cpu()).reject_with(busy));
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn reject_with<F, Res, E>(self, respond: F) -> OffloadLayer<RejectFn<F>, A>
    where
        F: Fn(CallError) -> Result<Res, E>,
    {
        self.reject(RejectFn::new(respond))
    }

    /// Offloads an HTTP request only if `predicate` and every earlier filter return `true`. Other
    /// requests run inline, in the caller's task.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// let pool = ThreadPool::cpu();
    /// let layer = OffloadLayer::new(pool).filter(|head| head.uri().path() != "/ping");
    /// let app: Router = Router::new().route("/ping", get(async || "pong")).layer(layer);
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn filter<F>(self, predicate: F) -> OffloadLayer<X, Filter<A, OfHead<F>>>
    where
        F: Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    {
        self.inspect(|inner| Filter::new(inner, OfHead::new(predicate)))
    }

    /// Like [`filter`](Self::filter), for requests that are not HTTP:
    /// `.filter_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn filter_request<F, Req>(self, predicate: F) -> OffloadLayer<X, Filter<A, OfRequest<F>>>
    where
        F: Fn(&Req) -> bool + Send + Sync + 'static,
    {
        self.inspect(|inner| Filter::new(inner, OfRequest::new(predicate)))
    }

    /// Sets the priority of each HTTP request in the queue of the pool. Default:
    /// [`Priority::Normal`].
    ///
    /// The last call of this method takes effect. The pool rejects [`Low`](Priority::Low) calls
    /// once half of its queue is taken. With [`wait`](Self::wait) a `Low` call waits for capacity
    /// like any other. With [`backpressure`](Self::backpressure) capacity is reserved before the
    /// request is known, so the priority only decides the order.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_offload::{OffloadLayer, Priority, ThreadPool};
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
    pub fn priority<F>(self, priority: F) -> OffloadLayer<X, Prioritize<A, OfHead<F>>>
    where
        F: Fn(&RequestHead<'_>) -> Priority + Send + Sync + 'static,
    {
        self.inspect(|inner| Prioritize::new(inner, OfHead::new(priority)))
    }

    /// Like [`priority`](Self::priority), for requests that are not HTTP:
    /// `.priority_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn priority_request<F, Req>(self, priority: F) -> OffloadLayer<X, Prioritize<A, OfRequest<F>>>
    where
        F: Fn(&Req) -> Priority + Send + Sync + 'static,
    {
        self.inspect(|inner| Prioritize::new(inner, OfRequest::new(priority)))
    }

    /// Gives each HTTP request a key, and shares the pool among the keys: a tenant, a user, an API
    /// key or an address. A key that makes a thousand times as many calls as another one delays it
    /// by at most one call per thread.
    ///
    /// The closure returns an owned key. Keys whose calls wait take turns within their
    /// [priority](Self::priority). See [keys](crate::pool#keys) for what is guaranteed. Requests of
    /// layers without `fair_by` on the same pool take turns like one more key. The same value is
    /// the same key in all layers on a pool: if one means a tenant and another a user, return
    /// `("tenant", id)` and `("user", id)`.
    ///
    /// Calls that the handler makes, such as `pool.run(..)`, have no key unless it is given to them
    /// with [`CallOptions::fair_by`](crate::pool::CallOptions::fair_by).
    ///
    /// One key can fill half of the queue, also if it is the only one: 512 of the default 1024
    /// calls. The rest is kept for keys that come later, since a call in the queue is not taken
    /// back. Its next call gets a 429 although the queue has room. Give the pool twice the
    /// [`queue_capacity`](crate::pool::ThreadPoolBuilder::queue_capacity) that one key needs.
    ///
    /// Return a value that the client cannot choose freely, such as the name of an authenticated
    /// tenant: a client that sends another key with each request counts as many clients. If it can
    /// choose, group its keys with [`fair_by_group`](Self::fair_by_group). Only a hash of the key
    /// is kept. The last call of one of these methods takes effect. A panic of the closure is a
    /// panic of `call`.
    ///
    /// A layer that authenticates must be outside of this one, so that the closure sees what it has
    /// found: on axum, add it after this layer. Requests for which the closure returns `None` share
    /// the key `None`.
    ///
    /// ```
    /// use axum::{Router, extract::Request, middleware::{self, Next}, routing::get};
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// #[derive(Clone, Hash)]
    /// struct Tenant(u32);
    ///
    /// let authenticate = async |mut request: Request, next: Next| {
    ///     request.extensions_mut().insert(Tenant(7)); // found by a token, for example
    ///     next.run(request).await
    /// };
    /// let layer = OffloadLayer::new(ThreadPool::cpu())
    ///     .fair_by(|head| head.extensions().get::<Tenant>().cloned()); // the key must be owned
    /// let app: Router = Router::new()
    ///     .route("/search", get(async || "rows"))
    ///     .layer(layer)
    ///     .layer(middleware::from_fn(authenticate));
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn fair_by<F, K>(self, key: F) -> OffloadLayer<X, FairBy<A, OfHead<F>>>
    where
        F: Fn(&RequestHead<'_>) -> K + Send + Sync + 'static,
        K: Hash,
    {
        self.inspect(|inner| FairBy::new(inner, OfHead::new(key)))
    }

    /// Like [`fair_by`](Self::fair_by), for requests that are not HTTP:
    /// `.fair_by_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn fair_by_request<F, K, Req>(self, key: F) -> OffloadLayer<X, FairBy<A, OfRequest<F>>>
    where
        F: Fn(&Req) -> K + Send + Sync + 'static,
        K: Hash,
    {
        self.inspect(|inner| FairBy::new(inner, OfRequest::new(key)))
    }

    /// Like [`fair_by`](Self::fair_by), with a group and a key in it, such as a tenant and a user
    /// of that tenant. Groups take turns, and the keys of a group share its turns. A tenant with a
    /// thousand users gets no more than one with a single user. The client must not be able to
    /// choose its group.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// # #[derive(Clone, Hash)] struct Tenant(u32);
    /// let layer = OffloadLayer::new(ThreadPool::cpu()).fair_by_group(|head| {
    ///     // The tenant is authenticated by an outer layer, the user is what its client says.
    ///     (head.extensions().get::<Tenant>().cloned(), head.headers().get("x-user").cloned())
    /// });
    /// let app: Router = Router::new().route("/search", get(async || "rows")).layer(layer);
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn fair_by_group<F, G, K>(self, group_and_key: F) -> OffloadLayer<X, FairByGroup<A, OfHead<F>>>
    where
        F: Fn(&RequestHead<'_>) -> (G, K) + Send + Sync + 'static,
        G: Hash,
        K: Hash,
    {
        self.inspect(|inner| FairByGroup::new(inner, OfHead::new(group_and_key)))
    }

    /// Like [`fair_by_group`](Self::fair_by_group), for requests that are not HTTP:
    /// `.fair_by_group_request(|request: &MyRequest| (.., ..))`.
    #[must_use]
    pub fn fair_by_group_request<F, G, K, Req>(self, group_and_key: F) -> OffloadLayer<X, FairByGroup<A, OfRequest<F>>>
    where
        F: Fn(&Req) -> (G, K) + Send + Sync + 'static,
        G: Hash,
        K: Hash,
    {
        self.inspect(|inner| FairByGroup::new(inner, OfRequest::new(group_and_key)))
    }

    /// Sets a [deadline](self::super#deadlines) for each HTTP request for which the closure returns
    /// a duration, which is measured from the `call` of the layer's service.
    ///
    /// A request that has not started by then never starts. Its caller, or that of work which is
    /// running, is answered with [`CallError::DeadlineExceeded`]: by default a 504, or the gRPC
    /// status `DEADLINE_EXCEEDED`. Of several timeouts and of an enclosing deadline, the earliest
    /// one applies.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, routing::get};
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu()).timeout(|head| match head.uri().path() {
    ///     "/export" => None,
    ///     _ => Some(Duration::from_secs(2)),
    /// });
    /// let app: Router = Router::new().route("/search", get(async || "rows")).layer(layer);
    /// # let _ = app;
    /// ```
    #[must_use]
    pub fn timeout<F>(self, timeout: F) -> OffloadLayer<X, Timeout<A, OfHead<F>>>
    where
        F: Fn(&RequestHead<'_>) -> Option<Duration> + Send + Sync + 'static,
    {
        self.inspect(|inner| Timeout::new(inner, OfHead::new(timeout)))
    }

    /// Like [`timeout`](Self::timeout), for requests that are not HTTP:
    /// `.timeout_request(|request: &MyRequest| ..)`.
    #[must_use]
    pub fn timeout_request<F, Req>(self, timeout: F) -> OffloadLayer<X, Timeout<A, OfRequest<F>>>
    where
        F: Fn(&Req) -> Option<Duration> + Send + Sync + 'static,
    {
        self.inspect(|inner| Timeout::new(inner, OfRequest::new(timeout)))
    }

    /// Reads the [timeout](Self::timeout) of each HTTP request, gRPC or not, from its header
    /// `grpc-timeout`.
    ///
    /// It is an option because any client can send the header. It never extends a timeout of the
    /// server: the earliest deadline applies. A malformed value is ignored, as tonic does, so set a
    /// `timeout` as well.
    ///
    /// Tonic's server reads the header too, outside of the layer, and drops a call at its deadline,
    /// with the status `CANCELLED`. With this option the work also knows
    /// [how much time is left](crate::remaining), and the status is `DEADLINE_EXCEEDED` if the
    /// layer answers first.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu())
    ///     .grpc_timeout()
    ///     .timeout(|_head| Some(Duration::from_secs(10)));
    /// # use axum::{Router, routing::get};
    /// # let _: Router = Router::new().route("/", get(async || "")).layer(layer);
    /// ```
    #[must_use]
    pub fn grpc_timeout(self) -> OffloadLayer<X, Timeout<A, OfHead<GrpcTimeout>>> {
        let timeout: GrpcTimeout = |head| grpc::timeout(head.headers());
        self.inspect(|inner| Timeout::new(inner, OfHead::new(timeout)))
    }

    /// Propagates a value to the pool, such as a task-local of an outer layer.
    ///
    /// `capture` reads the value in the caller's task. `in_context` sets it around each poll of the
    /// work and around its drop; it must call its second argument.
    ///
    /// If the value is a reference, such as a `&'static str`, wrap it in a struct. Otherwise rustc
    /// may find that a call of the service in an async block is not `Send`
    /// ("implementation of `FnOnce` is not general enough").
    ///
    /// ```
    /// use tower_offload::{OffloadLayer, ThreadPool};
    ///
    /// tokio::task_local! {
    ///     static TENANT: String;
    /// }
    ///
    /// let layer = OffloadLayer::new(ThreadPool::cpu())
    ///     .propagate(|_head| TENANT.get(), |tenant, poll| TENANT.sync_scope(tenant, poll));
    /// # use axum::{Router, routing::get};
    /// # let _: Router = Router::new().route("/", get(async || "")).layer(layer);
    /// ```
    #[must_use]
    pub fn propagate<V, C, P>(self, capture: C, in_context: P) -> OffloadLayer<X, Propagate<A, OfHead<C>, P>>
    where
        C: Fn(&RequestHead<'_>) -> V + Send + Sync + 'static,
        P: Fn(V, &mut dyn FnMut()) + Send + Sync + 'static,
        V: Clone + Send + 'static,
    {
        self.inspect(|inner| Propagate::new(inner, OfHead::new(capture), in_context))
    }

    /// Like [`propagate`](Self::propagate), for requests that are not HTTP:
    /// `.propagate_request(|request: &MyRequest| .., ..)`.
    #[must_use]
    pub fn propagate_request<V, C, P, Req>(
        self,
        capture: C,
        in_context: P,
    ) -> OffloadLayer<X, Propagate<A, OfRequest<C>, P>>
    where
        C: Fn(&Req) -> V + Send + Sync + 'static,
        P: Fn(V, &mut dyn FnMut()) + Send + Sync + 'static,
        V: Clone + Send + 'static,
    {
        self.inspect(|inner| Propagate::new(inner, OfRequest::new(capture), in_context))
    }

    /// Changes the limits. The layer gets a new limiter, which does not count earlier calls.
    fn limit(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = self.config.limiter.limits();
        change(&mut limits);
        self.config.limiter = Arc::new(Limiter::new(limits));
        self
    }

    fn inspect<B>(self, wrap: impl FnOnce(A) -> B) -> OffloadLayer<X, B> {
        let Config { pool, limiter, reject, inspect, detached, catch_panics, route } = self.config;
        let inspect = wrap(inspect);
        OffloadLayer { config: Config { pool, limiter, reject, inspect, detached, catch_panics, route } }
    }
}

// `Clone` and `Send` are bounds of the layer as well, so that the compiler reports them where the
// stack is built. Missing bounds of `Service` would only be reported as missing methods.
impl<S: Clone + Send + 'static, X: Clone, A: Clone + 'static> Layer<S> for OffloadLayer<X, A> {
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
            .field("limiter", &self.config.limiter)
            .field("detached", &self.config.detached)
            .field("catch_panics", &self.config.catch_panics)
            .finish_non_exhaustive()
    }
}
