use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_service::Service;

use super::{
    adaptive::{InPlace, Route},
    admission::{Backpressure, Limiter, Mode},
    future::{Fallback, Rejected, ResponseFuture, State, Work},
    inspect::{Inspect, OffloadAll},
    reject::{HttpReject, Reject, Watch},
};
use crate::pool::{
    Admitted, CallError, CallOptions, PermitKind, Pool,
    call::{Context as CallContext, CurrentCall, JoinHandle, OnCallerDrop},
    spawn, spawn_in_place,
};

/// Runs the inner service's `call`, and its future, on a pool.
///
/// Created by [`OffloadLayer`](super::OffloadLayer). See the [module docs](self::super).
//
// `'static` is a bound of the struct, not of `Service`. As a bound of that impl it would make the
// future of `async move { service.oneshot(request).await }` not `Send` if `S` contains a
// `&'static str`: rustc erases the lifetimes in the types that an async block holds across an
// await, and then cannot prove the bound (rust-lang/rust#110338).
pub struct Offload<S: 'static, X = HttpReject, A: 'static = OffloadAll> {
    inner: S,
    config: Config<X, A>,
    /// `Some` in mode `Backpressure`.
    backpressure: Option<Backpressure>,
}

/// The options of a layer, shared with its services.
#[derive(Debug, Clone)]
pub(super) struct Config<X, A> {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) reject: X,
    pub(super) inspect: A,
    pub(super) detached: bool,
    pub(super) catch_panics: bool,
    /// `Some` in an adaptive layer.
    pub(super) route: Option<Arc<Route>>,
}

impl<S, X, A> Offload<S, X, A> {
    pub(super) fn new(inner: S, config: Config<X, A>) -> Self {
        let backpressure = (config.limiter.limits().mode == Mode::Backpressure)
            .then(|| Backpressure::new(config.limiter.clone(), config.pool.clone()));
        Self { inner, config, backpressure }
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service, which must not be replaced between
    /// `poll_ready` and `call`.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Req, X, A> Service<Req> for Offload<S, X, A>
where
    S: Service<Req> + Clone + Send,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
    Req: Send + 'static,
    X: Reject<Req, S::Response, S::Error>,
    A: Inspect<Req>,
{
    type Response = S::Response;
    type Error = X::Error;
    type Future = ResponseFuture<S::Future, Req, X, X::Hint>;

    /// Polls the inner service. With [`backpressure`](super::OffloadLayer::backpressure) it then
    /// reserves capacity; otherwise it reserves nothing, and a full pool does not make the service
    /// pending.
    ///
    /// # Panics
    ///
    /// Panics if another layer with [`backpressure`](super::OffloadLayer::backpressure) on the same
    /// pool is inside this service.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let _reserving = self.backpressure.as_ref().map(Backpressure::enter);
        let ready = ready!(self.inner.poll_ready(cx));
        ready.map_err(|error| self.config.reject.map_err(error))?;
        if let Some(backpressure) = &mut self.backpressure {
            ready!(backpressure.poll_reserve(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// # Panics
    ///
    /// Panics with [`backpressure`](super::OffloadLayer::backpressure) if `poll_ready` did not
    /// return ready before.
    fn call(&mut self, request: Req) -> Self::Future {
        let hint = Some(self.config.reject.hint(&request));
        let state = if !self.config.inspect.should_offload(&request) {
            drop(self.backpressure.as_mut().map(Backpressure::take));
            State::Inline { future: self.inner.call(request) }
        } else if let Some(backpressure) = &mut self.backpressure {
            let reserved = backpressure.take();
            self.offload_reserved(request, reserved)
        } else {
            self.offload(request)
        };
        let Config { reject, catch_panics, .. } = &self.config;
        let fallback = Fallback { reject: reject.clone(), hint, catch_panics: *catch_panics };
        ResponseFuture::new(state, fallback)
    }
}

/// A service whose calls can run on another thread.
trait SendService<Req>: Service<Req, Response: Send, Error: Send, Future: Send> + Clone + Send {}

impl<S, Req> SendService<Req> for S where S: Service<Req, Response: Send, Error: Send, Future: Send> + Clone + Send {}

impl<S, X, A> Offload<S, X, A> {
    /// Makes a call without a reservation.
    #[inline(always)] // So that the permits are not copied on their way into the call.
    fn offload<Req>(&mut self, request: Req) -> State<S::Future>
    where
        S: SendService<Req>,
        Req: Send + 'static,
        X: Reject<Req, S::Response, S::Error>,
        A: Inspect<Req>,
    {
        let (options, outer) = CurrentCall::inherit(self.config.inspect.options(&request));
        if options.deadline.has_passed() {
            return self.wait_or_reject(request, options, CallError::DeadlineExceeded);
        }
        match self.config.limiter.try_admit(&self.config.pool, options, outer, PermitKind::Limited) {
            Ok(admitted) => State::Offloaded { handle: self.start(request, admitted) },
            Err(error) => self.wait_or_reject(request, options, error),
        }
    }

    /// Makes a call with the permits that `poll_ready` has reserved. They were acquired before the
    /// request was known, so its priority and key only order the queue.
    #[inline(never)] // Keeps it out of the path of other calls, like the next two.
    fn offload_reserved<Req>(&mut self, request: Req, reserved: Result<Admitted, CallError>) -> State<S::Future>
    where
        S: SendService<Req>,
        Req: Send + 'static,
        X: Reject<Req, S::Response, S::Error>,
        A: Inspect<Req>,
    {
        let (options, outer) = CurrentCall::inherit(self.config.inspect.options(&request));
        let admitted = match reserved {
            _ if options.deadline.has_passed() => Err(CallError::DeadlineExceeded),
            reserved => {
                reserved.and_then(|admitted| self.config.limiter.try_admit_key(admitted, options, outer.as_ref()))
            }
        };
        match admitted {
            Ok(admitted) => State::Offloaded { handle: self.start(request, admitted) },
            Err(error) => self.wait_or_reject(request, options, error),
        }
    }

    /// Starts a call that is admitted.
    #[inline(always)] // Like `offload`.
    fn start<Req>(&mut self, request: Req, admitted: Admitted) -> JoinHandle<Result<S::Response, S::Error>>
    where
        S: SendService<Req>,
        Req: Send + 'static,
        X: Reject<Req, S::Response, S::Error>,
        A: Inspect<Req>,
    {
        match self.config.route.as_ref().and_then(Route::try_run_in_place) {
            Some(in_place) => self.start_in_place(request, admitted, in_place),
            None => {
                let watch = self.config.reject.watch(&request);
                let work = self.work(request, watch, None);
                spawn(admitted, CallContext::capture(), self.on_caller_drop(), work)
            }
        }
    }

    /// Starts a call with a first poll on this thread.
    #[inline(never)]
    fn start_in_place<Req>(
        &mut self,
        request: Req,
        admitted: Admitted,
        in_place: InPlace,
    ) -> JoinHandle<Result<S::Response, S::Error>>
    where
        S: SendService<Req>,
        Req: Send + 'static,
        X: Reject<Req, S::Response, S::Error>,
        A: Inspect<Req>,
    {
        let watch = self.config.reject.watch(&request);
        let work = self.work(request, watch, Some(&in_place));
        spawn_in_place(admitted, CallContext::capture(), self.on_caller_drop(), work)
    }

    /// Lets a call wait that was not admitted because of `error`, or rejects it.
    #[inline(never)]
    fn wait_or_reject<Req>(&mut self, request: Req, options: CallOptions, error: CallError) -> State<S::Future>
    where
        S: SendService<Req>,
        Req: Send + 'static,
        X: Reject<Req, S::Response, S::Error>,
        A: Inspect<Req>,
    {
        let watch = self.config.reject.watch(&request);
        match (error, self.config.limiter.limits().mode) {
            (CallError::Overloaded | CallError::KeyLimited, Mode::Wait(timeout)) => {
                match self.config.limiter.try_wait(&self.config.pool, options.key) {
                    Ok(waiting) => {
                        let (pool, context) = (self.config.pool.clone(), CallContext::capture());
                        let (work, on_caller_drop) = (self.work(request, watch, None), self.on_caller_drop());
                        let admitted = async move {
                            match waiting.admit(options, timeout).await {
                                Ok(admitted) => Ok(spawn(admitted, context, on_caller_drop, work)),
                                Err(error) => Err(count_rejection(&*pool, error)),
                            }
                        };
                        State::Waiting { admitted: Box::pin(admitted) }
                    }
                    Err(wait_error) => {
                        // Without room to wait, the call is rejected for what it lacks.
                        let error = if wait_error == CallError::Overloaded { error } else { wait_error };
                        State::Rejected { rejected: count_rejection(&*self.config.pool, error) }
                    }
                }
            }
            // The inner service was not called, so it is still ready.
            _ => State::Rejected { rejected: count_rejection(&*self.config.pool, error) },
        }
    }

    /// Moves the service that was polled ready, and everything else the work needs, out of `self`.
    #[inline(always)] // Like `spawn`.
    fn work<Req>(
        &mut self,
        request: Req,
        watch: Option<Watch<S::Response>>,
        in_place: Option<&InPlace>,
    ) -> Work<S, Req, A>
    where
        S: Service<Req> + Clone,
        A: Inspect<Req>,
    {
        let captured = self.config.inspect.capture(&request);
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        let probe = self.config.route.as_ref().map(|route| route.probe(in_place));
        Work::new(ready, request, self.config.inspect.clone(), captured, watch, probe)
    }

    fn on_caller_drop(&self) -> OnCallerDrop {
        if self.config.detached { OnCallerDrop::Detach } else { OnCallerDrop::Cancel }
    }
}

fn count_rejection(pool: &dyn Pool, error: CallError) -> Rejected {
    pool.admission().metrics().rejected(error);
    Rejected { error, expected_wait: pool.expected_wait() }
}

impl<S: Clone, X: Clone, A: Clone> Clone for Offload<S, X, A> {
    /// Returns a service that has to be polled ready itself and holds no reservation.
    fn clone(&self) -> Self {
        let Self { inner, config, backpressure } = self;
        Self { inner: inner.clone(), config: config.clone(), backpressure: backpressure.clone() }
    }
}

impl<S: fmt::Debug, X, A> fmt::Debug for Offload<S, X, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offload")
            .field("inner", &self.inner)
            .field("pool", &self.config.pool)
            .field("limiter", &self.config.limiter)
            .finish_non_exhaustive()
    }
}
