//! Admission of calls to a layer: the limit on calls in flight, and the handling of calls while
//! there is no capacity.
//!
//! An admitted call holds up to three permits: one of its key and one of the layer, until its work
//! ends, and one of the pool's queue, until its first poll. They are always acquired in this order,
//! so that the calls of one key do not hold permits of the layer while they wait for each other.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use super::key_limit::{KeyLimit, KeyPermit};
use crate::{
    panic::{catch_unwind, drop_payload},
    pool::{
        Admitted, CallError, CallKey, CallOptions, PermitKind, Pool, QueuePermit, Semaphore, Shares,
        call::{CurrentCall, LayerPermit},
    },
    sync::{Mutex, lock},
};

/// Options of a [`Limiter`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The maximum number of calls in flight. `None`: no limit.
    pub(super) max_in_flight: Option<usize>,
    /// The maximum number of calls in flight with the same key. `None`: no limit.
    pub(super) max_in_flight_per_key: Option<usize>,
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
        Self { max_in_flight: None, max_in_flight_per_key: None, mode: Mode::Reject, max_waiting: 1024 }
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
    in_flight: Option<Semaphore>,
    of_key: Option<Arc<KeyLimit>>,
    waiting: Mutex<WaitingCalls>,
}

/// The [`Waiting`] calls that exist, at most `limits.max_waiting`.
#[derive(Debug, Default)]
struct WaitingCalls {
    count: usize,
    /// Those with a key.
    shares: Shares,
}

impl Limiter {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            in_flight: limits.max_in_flight.map(Semaphore::new),
            of_key: limits.max_in_flight_per_key.map(KeyLimit::new),
            waiting: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Acquires all permits without waiting, or none. `outer` is the permit of the call within
    /// which this call is made. `kind` is that of the permit for the queue.
    #[inline(always)] // So that the permits are not copied.
    pub(super) fn try_admit(
        self: &Arc<Self>,
        pool: &Arc<dyn Pool>,
        options: CallOptions,
        outer: Option<Arc<dyn LayerPermit>>,
        kind: PermitKind,
    ) -> Result<Admitted, CallError> {
        let layer_permit =
            if self.needs_permit(outer.as_ref()) { Some(self.try_acquire(pool, options, outer)?) } else { outer };
        Ok(Admitted { queue_permit: QueuePermit::try_acquire(pool, options, kind)?, layer_permit, options })
    }

    /// Acquires the permits of the key and of the layer without waiting, or none.
    #[inline(never)] // Keeps it out of the path of layers without limits.
    fn try_acquire(
        self: &Arc<Self>,
        pool: &Arc<dyn Pool>,
        options: CallOptions,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Result<Arc<dyn LayerPermit>, CallError> {
        // `Closed` takes precedence over `Overloaded`, because a retry would not succeed.
        if pool.admission().is_closed() {
            return Err(CallError::Closed);
        }
        let of_key = self.try_acquire_for_key(options)?;
        let in_flight = match &self.in_flight {
            Some(in_flight) if !in_flight.try_acquire() => return Err(CallError::Overloaded),
            in_flight => in_flight.is_some().then(|| InFlight(self.clone())),
        };
        Ok(self.hold(in_flight, of_key, outer))
    }

    /// Waits for all permits. Keys take turns, and calls of a key are served in order of arrival.
    /// Returns early if the pool is closed. `kind` is that of the permit for the queue. Records in
    /// `progress` what the call no longer waits for.
    async fn admit(
        self: Arc<Self>,
        pool: Arc<dyn Pool>,
        options: CallOptions,
        outer: Option<Arc<dyn LayerPermit>>,
        kind: PermitKind,
        progress: Arc<Progress>,
    ) -> Result<Admitted, CallError> {
        let mut closed = pin!(pool.admission().closed());
        let mut admitted = pin!(async {
            let layer_permit = if self.needs_permit(outer.as_ref()) {
                let of_key = match (&self.of_key, options.key) {
                    (Some(limit), Some(key)) => Some(limit.acquire(key).await),
                    _ => None,
                };
                progress.has_key_permit.store(true, Relaxed);
                let in_flight = match &self.in_flight {
                    Some(in_flight) => {
                        let acquired = in_flight.acquire(PermitKind::Limited, options.key).await;
                        acquired.map_err(|_| CallError::Closed)?;
                        Some(InFlight(self.clone()))
                    }
                    None => None,
                };
                Some(self.hold(in_flight, of_key, outer.clone()))
            } else {
                outer.clone()
            };
            progress.has_key_permit.store(true, Relaxed);
            progress.has_layer_permit.store(true, Relaxed);
            Ok(Admitted { queue_permit: QueuePermit::acquire(&pool, kind, options.key).await?, layer_permit, options })
        });
        poll_fn(|cx| match closed.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(CallError::Closed)),
            Poll::Pending => admitted.as_mut().poll(cx),
        })
        .await
    }

    /// Adds a permit of the key to a call whose other permits were reserved before its key was
    /// known.
    pub(super) fn try_admit_key(
        self: &Arc<Self>,
        admitted: Admitted,
        options: CallOptions,
        outer: Option<&Arc<dyn LayerPermit>>,
    ) -> Result<Admitted, CallError> {
        if self.of_key.is_none() || self.is_held_by(outer) {
            return Ok(Admitted { options, ..admitted });
        }
        let of_key = self.try_acquire_for_key(options)?;
        let layer_permit = Some(self.hold(None, of_key, admitted.layer_permit));
        Ok(Admitted { layer_permit, options, ..admitted })
    }

    fn try_acquire_for_key(&self, options: CallOptions) -> Result<Option<KeyPermit>, CallError> {
        match (&self.of_key, options.key) {
            (Some(limit), Some(key)) => limit.try_acquire(key).map(Some).ok_or(CallError::KeyLimited),
            _ => Ok(None),
        }
    }

    /// Counts a call as waiting.
    ///
    /// # Errors
    ///
    /// Returns `Overloaded` if `max_waiting` calls are waiting, `KeyLimited` if too many of them
    /// have the same key, and `NoRuntime` if there is no timer that could end the wait.
    pub(super) fn try_wait(self: &Arc<Self>, pool: &Arc<dyn Pool>, key: Option<CallKey>) -> Result<Waiting, CallError> {
        if Handle::try_current().is_err() {
            return Err(CallError::NoRuntime);
        }
        {
            let mut waiting = lock(&self.waiting);
            let left = self.limits.max_waiting.saturating_sub(waiting.count);
            match key {
                _ if left == 0 => return Err(CallError::Overloaded),
                Some(key) if !waiting.shares.has_room(key, left) => return Err(CallError::KeyLimited),
                Some(key) => waiting.shares.add(key, PermitKind::Limited),
                None => {}
            }
            waiting.count += 1;
        }
        Ok(Waiting::new(self.clone(), pool.clone(), key))
    }

    /// Returns `true` if a call with this outer permit needs one of this limiter.
    #[inline]
    fn needs_permit(self: &Arc<Self>, outer: Option<&Arc<dyn LayerPermit>>) -> bool {
        (self.in_flight.is_some() || self.of_key.is_some()) && !self.is_held_by(outer)
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
        in_flight: Option<InFlight>,
        of_key: Option<KeyPermit>,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Arc<dyn LayerPermit> {
        Arc::new(InFlightPermit { limiter: self.clone(), _in_flight: in_flight, _of_key: of_key, outer })
    }

    /// Identifies the limiter while a permit of it exists.
    fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

/// A permit of the layer, and of the key. The call owns it, not the response future, so a client
/// that hangs up does not make room for another call while its own still occupies a thread.
struct InFlightPermit {
    limiter: Arc<Limiter>,
    _in_flight: Option<InFlight>,
    _of_key: Option<KeyPermit>,
    outer: Option<Arc<dyn LayerPermit>>,
}

/// A permit of `Limiter::in_flight`.
struct InFlight(Arc<Limiter>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(in_flight) = &self.0.in_flight {
            in_flight.release(); // Catches the panics of wakers.
        }
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
    key: Option<CallKey>,
    outer: Option<Arc<dyn LayerPermit>>,
    since: Instant,
}

impl Waiting {
    /// The limiter has counted the call.
    fn new(limiter: Arc<Limiter>, pool: Arc<dyn Pool>, key: Option<CallKey>) -> Self {
        let waiting = Self { limiter, pool, key, outer: CurrentCall::layer_permit(), since: Instant::now() };
        waiting.pool.admission().metrics().delayed();
        waiting
    }

    /// Waits up to `timeout` for all permits, and at most until the deadline of the call.
    pub(super) async fn admit(self, options: CallOptions, timeout: Duration) -> Result<Admitted, CallError> {
        let (timeout, timeout_error) = match options.deadline.remaining() {
            Some(remaining) if remaining <= timeout => (remaining, CallError::DeadlineExceeded),
            _ => (timeout, CallError::Overloaded),
        };
        let progress = Arc::<Progress>::default();
        let (limiter, pool, outer) = (self.limiter.clone(), self.pool.clone(), self.outer.clone());
        let mut admitted = pin!(limiter.admit(pool, options, outer, PermitKind::Limited, progress.clone()));
        let mut timer = pin!(async { tokio::time::sleep(timeout).await });
        let admitted = poll_fn(|cx| {
            if let Poll::Ready(admitted) = admitted.as_mut().poll(cx) {
                return Poll::Ready(admitted);
            }
            // Tokio's timer panics in a runtime without time enabled and in one that shuts down.
            match catch_unwind(|| timer.as_mut().poll(cx)) {
                Ok(polled) => polled.map(|()| match timeout_error {
                    CallError::Overloaded if self.lacks_share(&progress) => Err(CallError::KeyLimited),
                    error => Err(error),
                }),
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

impl Waiting {
    /// Returns `true` if the call waits because its key has as many calls as it may have, while
    /// others have room.
    fn lacks_share(&self, progress: &Progress) -> bool {
        if !progress.has_key_permit.load(Relaxed) {
            return true;
        }
        // Only the queue has shares.
        progress.has_layer_permit.load(Relaxed) && self.key.is_some() && self.pool.admission().has_room()
    }
}

/// What a waiting call has acquired or does not need.
#[derive(Debug, Default)]
struct Progress {
    /// The permit of its key, for `max_in_flight_per_key`.
    has_key_permit: AtomicBool,
    /// The permit of the layer. The call now waits for that of the queue.
    has_layer_permit: AtomicBool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        {
            let mut waiting = lock(&self.limiter.waiting);
            waiting.count -= 1;
            if let Some(key) = self.key {
                waiting.shares.remove(key, PermitKind::Limited);
            }
        }
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

/// The permits that `poll_ready` reserves for `call` in mode `Backpressure`. That of the queue is
/// exempt, because a reservation that is not used is no call that waits.
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
                    match limiter.try_admit(&self.pool, options, CurrentCall::layer_permit(), PermitKind::Exempt) {
                        Err(CallError::Overloaded) => Reservation::Waiting(Box::pin(limiter.clone().admit(
                            self.pool.clone(),
                            options,
                            CurrentCall::layer_permit(),
                            PermitKind::Exempt,
                            Arc::default(),
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
