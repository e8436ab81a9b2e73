use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::panic::{catch_unwind, drop_payload};
use crate::pool::{
    Admitted, CallError, Pool, Priority, QueuePermit,
    call::{CurrentCall, LayerPermit},
};

/// The most calls that wait for a place at once, unless told otherwise; as many as wait in a pool's queue.
const DEFAULT_MAX_WAITING: usize = 1024;

/// How a layer lets calls in. Lives in the layer, not in its services: axum clones a layer for each route and a service
/// for each request, and all of them share one bound.
#[derive(Debug)]
pub(super) struct Admission {
    /// `None`: unlimited.
    places: Option<Arc<Semaphore>>,
    mode: Mode,
    max_waiting: usize,
    /// Calls that wait, in mode `Wait`.
    waiting: AtomicUsize,
}

/// What happens when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// `poll_ready` is pending until there is.
    Backpressure,
    /// The call is refused at once.
    Reject,
    /// The call waits for so long, then it is refused.
    Wait(Duration),
}

impl Admission {
    pub(super) fn new() -> Self {
        Self { places: None, mode: Mode::Reject, max_waiting: DEFAULT_MAX_WAITING, waiting: AtomicUsize::new(0) }
    }

    pub(super) fn with_mode(&self, mode: Mode) -> Self {
        Self { places: self.fresh_places(), mode, max_waiting: self.max_waiting, waiting: AtomicUsize::new(0) }
    }

    pub(super) fn with_max_in_flight(&self, places: usize) -> Self {
        let places = Some(Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))));
        Self { places, mode: self.mode, max_waiting: self.max_waiting, waiting: AtomicUsize::new(0) }
    }

    pub(super) fn with_max_waiting(&self, max_waiting: usize) -> Self {
        Self { places: self.fresh_places(), mode: self.mode, max_waiting, waiting: AtomicUsize::new(0) }
    }

    /// Options are set before the layer is used, so every place is free.
    fn fresh_places(&self) -> Option<Arc<Semaphore>> {
        self.places.as_ref().map(|places| Arc::new(Semaphore::new(places.available_permits())))
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// `true` if a call made here and now is made within a call of this layer: it shares that one's place, else
    /// `max_in_flight(1)` would deadlock when nested in itself.
    fn is_nested(self: &Arc<Self>, outer: Option<&Arc<dyn LayerPermit>>) -> bool {
        let mut place = outer;
        while let Some(held) = place {
            if held.layer() == self.address() {
                return true;
            }
            place = held.outer();
        }
        false
    }

    /// Takes a place and a slot at once or not at all.
    pub(super) fn admit(self: &Arc<Self>, pool: &Arc<dyn Pool>, priority: Priority) -> Result<Admitted, CallError> {
        let outer = CurrentCall::layer_permit();
        let place = match &self.places {
            Some(places) if !self.is_nested(outer.as_ref()) => {
                // Closed is the better news: a caller that is told to come back later would come in vain.
                if pool.admission().is_closed() {
                    return Err(CallError::Closed);
                }
                let permit = places.clone().try_acquire_owned().map_err(|_| CallError::Overloaded)?;
                Some(self.hold(permit, outer))
            }
            _ => outer,
        };
        Ok(Admitted { queue_permit: QueuePermit::try_acquire(pool, priority)?, layer_permit: place, priority })
    }

    /// Waits for a place, then for a slot, each in the order of arrival. A closed pool is known at once.
    pub(super) async fn admitted(
        self: Arc<Self>,
        pool: Arc<dyn Pool>,
        priority: Priority,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Result<Admitted, CallError> {
        let mut closed = pin!(pool.admission().closed());
        let mut admitted = pin!(async {
            let place = match &self.places {
                Some(places) if !self.is_nested(outer.as_ref()) => {
                    let permit = places.clone().acquire_owned().await.map_err(|_| CallError::Closed)?;
                    Some(self.hold(permit, outer.clone()))
                }
                _ => outer.clone(),
            };
            Ok(Admitted { queue_permit: QueuePermit::acquire(&pool).await?, layer_permit: place, priority })
        });
        poll_fn(|cx| match closed.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(CallError::Closed)),
            Poll::Pending => admitted.as_mut().poll(cx),
        })
        .await
    }

    /// Counts the call among those that wait for a time, if there is room for one more and a timer to end it.
    pub(super) fn enter_wait(self: &Arc<Self>) -> Result<Waiting, CallError> {
        if Handle::try_current().is_err() {
            return Err(CallError::NoRuntime);
        }
        let more = |waiting| (waiting < self.max_waiting).then_some(waiting + 1);
        match self.waiting.fetch_update(SeqCst, SeqCst, more) {
            Ok(_) => Ok(Waiting { admission: self.clone(), outer: CurrentCall::layer_permit() }),
            Err(_) => Err(CallError::Overloaded),
        }
    }

    fn hold(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        outer: Option<Arc<dyn LayerPermit>>,
    ) -> Arc<dyn LayerPermit> {
        Arc::new(Held { admission: self.clone(), _permit: permit, outer })
    }

    fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

/// A call that waits to be admitted, counted until it is dropped.
pub(super) struct Waiting {
    admission: Arc<Admission>,
    outer: Option<Arc<dyn LayerPermit>>,
}

impl Waiting {
    pub(super) async fn admitted(
        self,
        pool: Arc<dyn Pool>,
        priority: Priority,
        at_most: Duration,
    ) -> Result<Admitted, CallError> {
        let admitted = self.admission.clone().admitted(pool, priority, self.outer.clone());
        let mut timed = pin!(async { tokio::time::timeout(at_most, admitted).await });
        // Tokio's timer panics in a runtime that has none, or that shuts down.
        poll_fn(|cx| match catch_unwind(|| timed.as_mut().poll(cx)) {
            Ok(polled) => polled.map(|in_time| in_time.unwrap_or(Err(CallError::Overloaded))),
            Err(payload) => {
                drop_payload(payload);
                Poll::Ready(Err(CallError::NoRuntime))
            }
        })
        .await
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.admission.waiting.fetch_sub(1, SeqCst);
    }
}

/// A place of a layer. The job holds it, not the response future: a client that hangs up frees no thread that is busy.
struct Held {
    admission: Arc<Admission>,
    _permit: OwnedSemaphorePermit,
    outer: Option<Arc<dyn LayerPermit>>,
}

impl LayerPermit for Held {
    fn layer(&self) -> usize {
        self.admission.address()
    }

    fn outer(&self) -> Option<&Arc<dyn LayerPermit>> {
        self.outer.as_ref()
    }
}
