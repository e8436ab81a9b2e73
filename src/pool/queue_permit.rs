use std::{
    fmt,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    CallError, CallOptions, Pool,
    admission::Admission,
    call::{LayerPermit, Runnable},
    key::CallKey,
    overload::Change,
    permits::PermitKind,
};
use crate::panic::catch_unwind;

/// Permit for one entry in the queue of a pool, and the connection of a call to its pool.
///
/// It becomes part of the call that it admits. The call releases it at its first poll, or when it
/// is refused; otherwise dropping the permit releases it. A caller that leaves early drops the
/// future of its call, but the permit stays in use until the entry leaves the queue. Otherwise the
/// entries of abandoned calls could pile up.
///
/// A permit is *exempt* if its call was accepted before it reached the pool, so that no caller can
/// be told that the pool is overloaded. Such a call is rejected only if the queue is full: an
/// overload neither counts it nor sheds it.
pub(crate) struct QueuePermit {
    pool: Arc<dyn Pool>,
    kind: PermitKind,
    /// The key of the call, if the permit is counted as part of its share.
    key: Option<CallKey>,
    /// `false` once the permit is released. Not shared: it is accessed only by the thread that has
    /// taken the call's entry, or that drops the permit.
    is_held: AtomicBool,
    /// Time that the call waited for capacity before it was admitted, in nanoseconds.
    delay: u64,
}

/// Permits that admit a call to a pool, and its options.
pub(crate) struct Admitted {
    pub(crate) queue_permit: QueuePermit,
    /// Permit of a layer that limits its calls in flight.
    pub(crate) layer_permit: Option<Arc<dyn LayerPermit>>,
    pub(crate) options: CallOptions,
}

impl QueuePermit {
    /// Acquires a permit if one is available. See [`Admission::try_acquire`] for the shares of keys
    /// and of low priority.
    #[inline(always)] // So that the permit is not copied on its way into a call.
    pub(crate) fn try_acquire(pool: &Arc<dyn Pool>, options: CallOptions, kind: PermitKind) -> Result<Self, CallError> {
        let CallOptions { priority, key, .. } = options;
        let (acquired, change) = (**pool).admission().try_acquire(priority, key, kind);
        if change != Change::None {
            Self::report(pool.admission(), change, acquired.is_ok().then_some((kind, key)));
        }
        acquired?;
        Ok(Self::new(pool.clone(), kind, key))
    }

    /// Reports a change. Releases the permit if there is one and a panic prevents its use.
    #[cold]
    fn report(admission: &Admission, change: Change, acquired: Option<(PermitKind, Option<CallKey>)>) {
        if let Err(payload) = catch_unwind(|| admission.report(change)) {
            acquired.into_iter().for_each(|(kind, key)| admission.release(kind, key));
            resume_unwind(payload);
        }
    }

    /// Like `try_acquire`, and counts a failure as a rejected call.
    pub(crate) fn try_acquire_counted(
        pool: Arc<dyn Pool>,
        options: CallOptions,
        kind: PermitKind,
    ) -> Result<Self, CallError> {
        let CallOptions { priority, key, .. } = options;
        let (acquired, change) = (*pool).admission().try_acquire(priority, key, kind);
        if change != Change::None {
            Self::report(pool.admission(), change, acquired.is_ok().then_some((kind, key)));
        }
        if let Err(error) = acquired {
            pool.admission().metrics().rejected(error);
            return Err(error);
        }
        Ok(Self::new(pool, kind, key))
    }

    /// Waits for a permit. Keys take turns, and calls of a key are served in order of arrival.
    pub(crate) async fn acquire(
        pool: &Arc<dyn Pool>,
        kind: PermitKind,
        key: Option<CallKey>,
    ) -> Result<Self, CallError> {
        pool.admission().acquire(kind, key).await?;
        Ok(Self::new(pool.clone(), kind, key))
    }

    pub(super) fn is_exempt(&self) -> bool {
        self.kind == PermitKind::Exempt
    }

    /// Adds the time that the call waited for capacity to the wait that is recorded for it.
    pub(crate) fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// Returns the admission control of the pool, by one virtual call.
    #[inline]
    pub(super) fn admission(&self) -> &Admission {
        (*self.pool).admission()
    }

    fn new(pool: Arc<dyn Pool>, kind: PermitKind, key: Option<CallKey>) -> Self {
        Self { pool, kind, key, is_held: AtomicBool::new(true), delay: 0 }
    }

    /// Marks the permit as released. Returns `true` the first time: the caller must then release
    /// it.
    #[inline]
    fn take(&self) -> bool {
        // A load and a store suffice, because only one thread at a time accesses the flag.
        let is_held = self.is_held.load(Ordering::Relaxed);
        if is_held {
            self.is_held.store(false, Ordering::Relaxed);
        }
        is_held
    }
}

/// What a call does with its pool.
impl QueuePermit {
    /// Queues an entry of the call.
    #[inline]
    pub(super) fn schedule(&self, runnable: Runnable) {
        (*self.pool).schedule(runnable);
    }

    /// Releases the permit. Has no effect if it was released before.
    pub(super) fn release(&self) {
        if self.take() {
            self.admission().release(self.kind, self.key);
        }
    }

    /// Records the start of the call and releases the permit. Called before the first poll, for
    /// which the call has waited for `waited` nanoseconds. `admission` is that of the pool.
    #[inline(always)]
    pub(super) fn on_start(&self, admission: &Admission, waited: u64) {
        if self.take() {
            admission.release(self.kind, self.key);
        }
        admission.on_start(waited, self.delay);
    }

    /// Returns how long a new call is expected to wait.
    pub(super) fn expected_wait(&self) -> Duration {
        (*self.pool).expected_wait()
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for QueuePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePermit").field("is_held", &self.is_held).finish_non_exhaustive()
    }
}
