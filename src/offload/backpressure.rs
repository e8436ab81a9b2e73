use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::PollSemaphore;

use super::admission::Admission;
use crate::pool::{
    Gate, PollSlot, Rejection, Slot,
    call::{Admitted, Current},
};

/// What `poll_ready` reserves and `call` spends, in the mode of that name.
pub(super) struct Backpressure {
    admission: Arc<Admission>,
    places: Option<PollSemaphore>,
    slots: PollSlot,
    permit: Option<OwnedSemaphorePermit>,
    reserved: Option<Result<Slot, Rejection>>,
}

impl Backpressure {
    pub(super) fn new(admission: &Arc<Admission>, gate: &Gate) -> Self {
        Self {
            admission: admission.clone(),
            places: admission.places().cloned().map(PollSemaphore::new),
            slots: gate.slots(),
            permit: None,
            reserved: None,
        }
    }

    /// Ready once a place and a slot are held, or the pool is closed: then the call is to be answered, not to hang.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reserved.is_some() {
            return Poll::Ready(());
        }
        if let (Some(places), None) = (&mut self.places, &self.permit) {
            if !self.admission.is_nested(Current::place().as_ref()) {
                self.permit = ready!(places.poll_acquire(cx));
            }
        }
        self.reserved = Some(ready!(self.slots.poll(cx)).ok_or(Rejection::Closed));
        Poll::Ready(())
    }

    /// What was reserved.
    ///
    /// # Panics
    ///
    /// If nothing was.
    pub(super) fn spend(&mut self, gate: &Gate) -> Result<Admitted, Rejection> {
        let (permit, reserved) = (self.permit.take(), self.reserved.take());
        let slot = reserved.expect("`Offload` with `.backpressure()` was called before `poll_ready` returned ready")?;
        if gate.is_closed() {
            return Err(Rejection::Closed);
        }
        let outer = Current::place();
        let place = match permit {
            Some(permit) => Some(self.admission.hold(permit, outer)),
            None => outer,
        };
        Ok(Admitted { slot, place })
    }
}

impl Clone for Backpressure {
    /// A clone holds no reservation: it would be spent twice.
    fn clone(&self) -> Self {
        Self {
            admission: self.admission.clone(),
            places: self.places.clone(),
            slots: self.slots.clone(),
            permit: None,
            reserved: None,
        }
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backpressure").field("reserved", &self.reserved.is_some()).finish_non_exhaustive()
    }
}
