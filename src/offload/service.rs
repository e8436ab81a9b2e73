use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_service::Service;

use super::{
    Everything, Http, Inspect, Reject, ResponseFuture,
    admission::{Admission, Mode},
    backpressure::Backpressure,
    future::{Answer, State},
    invoke::Invoke,
};
use crate::pool::{
    self, Admitted, CallError, Pool, Priority,
    call::{Context as CallContext, JoinHandle, OnCallerDrop},
};

/// Runs the inner service's `call`, and its future, on a pool.
///
/// See the [module docs](self::super). Made by [`OffloadLayer`](super::OffloadLayer).
pub struct Offload<S, X = Http, A = Everything> {
    inner: S,
    config: Config<X, A>,
    /// Only in the mode of that name.
    backpressure: Option<Backpressure>,
}

/// What a layer hands to each of its services.
#[derive(Debug, Clone)]
pub(super) struct Config<X, A> {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) admission: Arc<Admission>,
    pub(super) reject: X,
    pub(super) inspect: A,
    pub(super) detached: bool,
    pub(super) catch_panics: bool,
}

impl<S, X, A> Offload<S, X, A> {
    pub(super) fn new(inner: S, config: Config<X, A>) -> Self {
        let backpressure = (config.admission.mode() == Mode::Backpressure)
            .then(|| Backpressure::new(config.admission.clone(), config.pool.clone()));
        Self { inner, config, backpressure }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service. Do not replace it between `poll_ready` and `call`.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Req, X, A> Service<Req> for Offload<S, X, A>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
    Req: Send + 'static,
    X: Reject<Req, S::Response, S::Error>,
    A: Inspect<Req>,
{
    type Response = S::Response;
    type Error = X::Error;
    type Future = ResponseFuture<S::Future, Req, X, X::Hint>;

    /// Drives the inner service to ready. Reserves nothing, and is never pending because the pool is full, unless the
    /// layer was told to exert [`backpressure`](super::OffloadLayer::backpressure).
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let ready = ready!(self.inner.poll_ready(cx));
        ready.map_err(|error| self.config.reject.map_err(error))?;
        if let Some(backpressure) = &mut self.backpressure {
            ready!(backpressure.poll(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// # Panics
    ///
    /// With [`backpressure`](super::OffloadLayer::backpressure), if `poll_ready` was not ready.
    fn call(&mut self, request: Req) -> Self::Future {
        let reserved = self.backpressure.as_mut().map(Backpressure::spend);
        let hint = Some(self.config.reject.hint(&request));
        let state = if self.config.inspect.offloads(&request) {
            let priority = self.config.inspect.priority(&request);
            let admitted = match reserved {
                // Reserved before anybody knew the call: its priority decides its lane only.
                Some(reserved) => reserved.map(|admitted| Admitted { priority, ..admitted }),
                None => self.config.admission.admit(&self.config.pool, priority),
            };
            self.offload(request, priority, admitted)
        } else {
            State::Direct { future: self.inner.call(request) }
        };
        let Config { pool, reject, catch_panics, .. } = &self.config;
        let answer = Answer { reject: reject.clone(), hint, pool: pool.clone(), catch_panics: *catch_panics };
        ResponseFuture::new(state, answer)
    }
}

impl<S, X, A> Offload<S, X, A> {
    fn offload<Req>(
        &mut self,
        request: Req,
        priority: Priority,
        admitted: Result<Admitted, CallError>,
    ) -> State<S::Future>
    where
        S: Service<Req> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Response: Send + 'static,
        S::Error: Send + 'static,
        Req: Send + 'static,
        A: Inspect<Req>,
    {
        match (admitted, self.config.admission.mode()) {
            (Ok(admitted), _) => {
                let start = self.start(request);
                State::Offloaded { handle: start.now(admitted) }
            }
            (Err(CallError::Overloaded), Mode::Wait(at_most)) => match self.config.admission.enter_wait() {
                Ok(waiting) => {
                    let start = self.start(request);
                    let admitted = async move {
                        match waiting.admitted(start.pool.clone(), priority, at_most).await {
                            Ok(admitted) => Ok(start.now(admitted)),
                            Err(rejection) => Err(start.rejected(rejection)),
                        }
                    };
                    State::Waiting { admitted: Box::pin(admitted) }
                }
                Err(rejection) => self.rejected(rejection),
            },
            (Err(rejection), _) => self.rejected(rejection),
        }
    }

    /// Takes what a call needs, the service that was polled ready among it.
    fn start<Req>(&mut self, request: Req) -> Start<Invoke<S, Req, A>>
    where
        S: Service<Req> + Clone,
        A: Inspect<Req>,
    {
        let carried = self.config.inspect.capture(&request);
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        Start {
            pool: self.config.pool.clone(),
            context: CallContext::capture(),
            departure: if self.config.detached { OnCallerDrop::Detach } else { OnCallerDrop::Cancel },
            work: Invoke::new(ready, request, self.config.inspect.clone(), carried),
        }
    }

    /// The inner service stays ready: it was not called.
    fn rejected<F: Future>(&self, rejection: CallError) -> State<F> {
        self.config.pool.admission().metrics().rejected(rejection);
        State::Rejected { rejection }
    }
}

/// A call that may start once it is admitted.
struct Start<F> {
    pool: Arc<dyn Pool>,
    context: CallContext,
    departure: OnCallerDrop,
    work: F,
}

impl<F> Start<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn now(self, admitted: Admitted) -> JoinHandle<F::Output> {
        pool::spawn(admitted, self.context, self.departure, self.work)
    }

    fn rejected(self, rejection: CallError) -> CallError {
        self.pool.admission().metrics().rejected(rejection);
        rejection
    }
}

impl<S: Clone, X: Clone, A: Clone> Clone for Offload<S, X, A> {
    /// A clone holds no reservation and has to be polled ready itself.
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), config: self.config.clone(), backpressure: self.backpressure.clone() }
    }
}

impl<S: fmt::Debug, X, A> fmt::Debug for Offload<S, X, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offload")
            .field("inner", &self.inner)
            .field("pool", &self.config.pool)
            .field("admission", &self.config.admission)
            .finish_non_exhaustive()
    }
}
