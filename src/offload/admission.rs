//! Admission of calls to a layer: the limit on calls in flight, and the handling of calls while
//! there is no capacity.
//!
//! An admitted call holds two permits: one of the layer, until its work ends, and one of the pool's
//! queue, until its first poll. They are always acquired in this order.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    panic::{catch_unwind, drop_payload, ignore_panic},
    pool::{
        Admitted, CallError, CallOptions, Pool, QueuePermit,
        call::{CurrentCall, LayerPermit},
    },
};

/// Options of a [`Limiter`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The maximum number of calls in flight. `None`: no limit.
    pub(super) max_in_flight: Option<usize>,
    pub(super) mode: Mode,
    /// The maximum number of calls that wait in mode `Wait`.
    pub(super) max_waiting: usize,
}

/// Handling of a call while there is no capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The call is rejected at once.
    Reject,
    /// The call waits up to this duration and is then rejected.
    Wait(Duration),
    /// The call is not made: `poll_ready` stays pending.
    Backpressure,
}

impl Default for Limits {
    fn default() -> Self {
        // 1024 is also the default capacity of a pool's queue.
        Self { max_in_flight: None, mode: Mode::Reject, max_waiting: 1024 }
    }
}

/// Admits the calls of a layer.
///
/// It belongs to the layer and is shared by the layer's services, because axum clones a layer for
/// each route and a service for each request, and one limit applies to all of them.
#[derive(Debug)]
pub(super) struct Limiter {
    limits: Limits,
    /// One permit for each call in flight. `None`: no limit.
    in_flight: Option<Arc<Semaphore>>,
    /// The number of [`Waiting`] that exist, at most `limits.max_waiting`.
    waiting: AtomicUsize,
}

impl Limiter {
    pub(super) fn new(limits: Limits) -> Self {
        let in_flight = limits.max_in_flight.map(|calls| Arc::new(Semaphore::new(calls.min(Semaphore::MAX_PERMITS))));
        Self { limits, in_flight, waiting: AtomicUsize::new(0) }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Acquires both permits without waiting, or neither. `outer` is the permit of the call within
    /// which this call is made.
    pub(super) fn try_admit(
        self: &Arc<Self>,
        pool: &Arc<dyn Pool>,
        options: CallOptions,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Result<Admitted, CallError> {
        let layer_permit = match &self.in_flight {
            Some(in_flight) if !self.is_held_by(outer.as_ref()) => {
                // `Closed` takes precedence over `Overloaded`, because a retry would not succeed.
                if pool.admission().is_closed() {
                    return Err(CallError::Closed);
                }
                let permit = in_flight.clone().try_acquire_owned().map_err(|_| CallError::Overloaded)?;
                Some(self.hold(permit, outer))
            }
            _ => outer,
        };
        Ok(Admitted { queue_permit: QueuePermit::try_acquire(pool, options.priority)?, layer_permit, options })
    }

    /// Waits for both permits, for each in the order of arrival. Returns early if the pool is
    /// closed.
    async fn admit(
        self: Arc<Self>,
        pool: Arc<dyn Pool>,
        options: CallOptions,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Result<Admitted, CallError> {
        let mut closed = pin!(pool.admission().closed());
        let mut admitted = pin!(async {
            let layer_permit = match &self.in_flight {
                Some(in_flight) if !self.is_held_by(outer.as_ref()) => {
                    let permit = in_flight.clone().acquire_owned().await.map_err(|_| CallError::Closed)?;
                    Some(self.hold(permit, outer.clone()))
                }
                _ => outer.clone(),
            };
            Ok(Admitted { queue_permit: QueuePermit::acquire(&pool).await?, layer_permit, options })
        });
        poll_fn(|cx| match closed.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(CallError::Closed)),
            Poll::Pending => admitted.as_mut().poll(cx),
        })
        .await
    }

    /// Counts a call as waiting.
    ///
    /// # Errors
    ///
    /// Returns `Overloaded` if `max_waiting` calls are waiting, and `NoRuntime` if there is no
    /// timer that could end the wait.
    pub(super) fn try_wait(self: &Arc<Self>, pool: &Arc<dyn Pool>) -> Result<Waiting, CallError> {
        if Handle::try_current().is_err() {
            return Err(CallError::NoRuntime);
        }
        let more = |waiting| (waiting < self.limits.max_waiting).then_some(waiting + 1);
        match self.waiting.fetch_update(SeqCst, SeqCst, more) {
            Ok(_) => Ok(Waiting::new(self.clone(), pool.clone())),
            Err(_) => Err(CallError::Overloaded),
        }
    }

    /// Returns `true` if `permit`, or a permit around it, was issued by this limiter.
    ///
    /// A call within a call of the same layer shares the outer call's permit. Otherwise a layer
    /// with `max_in_flight(1)` would deadlock when it is nested in itself.
    fn is_held_by(self: &Arc<Self>, mut permit: Option<&Arc<dyn LayerPermit>>) -> bool {
        while let Some(held) = permit {
            if held.layer() == self.address() {
                return true;
            }
            permit = held.outer();
        }
        false
    }

    fn hold(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Arc<dyn LayerPermit> {
        Arc::new(InFlightPermit { limiter: self.clone(), permit: Some(permit), outer })
    }

    /// Identifies the limiter while a permit of it exists.
    fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

/// A permit of the layer. The call owns it, not the response future, so a client that hangs up does
/// not make room for another call while its own still occupies a thread.
struct InFlightPermit {
    limiter: Arc<Limiter>,
    /// `None` only during the drop.
    permit: Option<OwnedSemaphorePermit>,
    outer: Option<Arc<dyn LayerPermit>>,
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        // Wakes the next call that waits. Its waker is user code.
        let permit = self.permit.take();
        ignore_panic(|| drop(permit));
    }
}

impl LayerPermit for InFlightPermit {
    fn layer(&self) -> usize {
        self.limiter.address()
    }

    fn outer(&self) -> Option<&Arc<dyn LayerPermit>> {
        self.outer.as_ref()
    }
}

/// A call that waits to be admitted in mode `Wait`. It is counted until it is dropped, by its layer
/// and as a waiting call of its pool.
pub(super) struct Waiting {
    limiter: Arc<Limiter>,
    pool: Arc<dyn Pool>,
    outer: Option<Arc<dyn LayerPermit>>,
    since: Instant,
}

impl Waiting {
    /// The limiter has counted the call.
    fn new(limiter: Arc<Limiter>, pool: Arc<dyn Pool>) -> Self {
        let waiting = Self { limiter, pool, outer: CurrentCall::layer_permit(), since: Instant::now() };
        waiting.pool.admission().metrics().delayed();
        waiting
    }

    /// Waits up to `timeout` for both permits, and at most until the deadline of the call.
    pub(super) async fn admit(self, options: CallOptions, timeout: Duration) -> Result<Admitted, CallError> {
        let (timeout, timeout_error) = match options.deadline.remaining() {
            Some(remaining) if remaining <= timeout => (remaining, CallError::DeadlineExceeded),
            _ => (timeout, CallError::Overloaded),
        };
        let mut admitted = pin!(self.limiter.clone().admit(self.pool.clone(), options, self.outer.clone()));
        let mut timer = pin!(async { tokio::time::sleep(timeout).await });
        let admitted = poll_fn(|cx| {
            if let Poll::Ready(admitted) = admitted.as_mut().poll(cx) {
                return Poll::Ready(admitted);
            }
            // Tokio's timer panics in a runtime without time enabled and in one that shuts down.
            match catch_unwind(|| timer.as_mut().poll(cx)) {
                Ok(polled) => polled.map(|()| Err(timeout_error)),
                Err(payload) => {
                    drop_payload(payload);
                    Poll::Ready(Err(CallError::NoRuntime))
                }
            }
        });
        let Admitted { queue_permit, layer_permit, options } = admitted.await?;
        Ok(Admitted { queue_permit: queue_permit.with_delay(self.since.elapsed()), layer_permit, options })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.limiter.waiting.fetch_sub(1, SeqCst);
        self.pool.admission().metrics().undelayed();
    }
}

thread_local! {
    /// Addresses of the pools for which a service in mode `Backpressure` is being polled ready on
    /// this thread, outermost first.
    static RESERVING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Returned by [`Backpressure::enter`]. The service is being polled ready until it is dropped.
pub(super) struct Reserving(());

impl Drop for Reserving {
    fn drop(&mut self) {
        let _ = RESERVING.try_with(|pools| pools.borrow_mut().pop());
    }
}

/// The permits that `poll_ready` reserves for `call` in mode `Backpressure`.
pub(super) struct Backpressure {
    limiter: Arc<Limiter>,
    pool: Arc<dyn Pool>,
    state: Reservation,
}

enum Reservation {
    None,
    Waiting(Pin<Box<dyn Future<Output = Result<Admitted, CallError>> + Send + Sync>>),
    /// Errors are reported by `call`, because with a closed pool `poll_ready` would otherwise stay
    /// pending forever.
    Reserved(Result<Admitted, CallError>),
}

impl Backpressure {
    pub(super) fn new(limiter: Arc<Limiter>, pool: Arc<dyn Pool>) -> Self {
        Self { limiter, pool, state: Reservation::None }
    }

    /// Called before the inner service is polled ready.
    ///
    /// # Panics
    ///
    /// Panics inside the `poll_ready` of another layer that reserves a permit of the same queue.
    /// Each would keep its permit while it waits for that of the other, and callers that have one
    /// permit each would wait forever.
    pub(super) fn enter(&self) -> Reserving {
        let admission = self.pool.admission();
        let pool = std::ptr::from_ref(admission).addr();
        let _ = RESERVING.try_with(|pools| {
            assert!(
                !pools.borrow().contains(&pool),
                "two layers of one stack use `.backpressure()` on pool `{}`, and would wait for each other forever: \
                 use it on one of them, or give one a pool of its own",
                admission.name()
            );
            pools.borrow_mut().push(pool);
        });
        Reserving(())
    }

    pub(super) fn poll_reserve(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.state = match &mut self.state {
                // The options are those of the request, which is not known yet.
                Reservation::None => {
                    let (limiter, options) = (&self.limiter, CallOptions::new());
                    match limiter.try_admit(&self.pool, options, CurrentCall::layer_permit()) {
                        Err(CallError::Overloaded) => Reservation::Waiting(Box::pin(limiter.clone().admit(
                            self.pool.clone(),
                            options,
                            CurrentCall::layer_permit(),
                        ))),
                        reserved => Reservation::Reserved(reserved),
                    }
                }
                Reservation::Waiting(wait) => Reservation::Reserved(ready!(wait.as_mut().poll(cx))),
                Reservation::Reserved(_) => return Poll::Ready(()),
            };
        }
    }

    /// Returns the reservation to the call that uses it.
    ///
    /// # Panics
    ///
    /// Panics if `poll_reserve` has not returned ready since the last call.
    pub(super) fn take(&mut self) -> Result<Admitted, CallError> {
        let Reservation::Reserved(reserved) = std::mem::replace(&mut self.state, Reservation::None) else {
            panic!("`Offload` with `.backpressure()` was called before `poll_ready` returned ready");
        };
        // The pool may have been closed after `poll_ready`.
        if self.pool.admission().is_closed() { Err(CallError::Closed) } else { reserved }
    }
}

impl Clone for Backpressure {
    /// Returns a value without a reservation, because a reservation admits one call.
    fn clone(&self) -> Self {
        Self::new(self.limiter.clone(), self.pool.clone())
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reserved = matches!(self.state, Reservation::Reserved(_));
        f.debug_struct("Backpressure").field("reserved", &reserved).finish_non_exhaustive()
    }
}
