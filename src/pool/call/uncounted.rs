//! Owners of a call that its reference count does not include, because the thread that runs the
//! call owns it anyway. Each saves two changes of the count per poll.

use std::{
    fmt,
    mem::ManuallyDrop,
    ops::Deref,
    sync::Arc,
    task::{Wake, Waker},
};

use super::runnable::RawCall;

/// Runs `work` with a waker of the call.
pub(super) fn with_waker<C, T>(call: &Arc<C>, work: impl FnOnce(&Waker) -> T) -> T
where
    C: Wake + Send + Sync + 'static,
{
    // SAFETY: The pointer is that of an `Arc` which is borrowed until `work` has ended. The waker
    // is never dropped, so the count does not decrease, and `work` cannot move out of it.
    #[allow(unsafe_code)]
    let call = unsafe { Arc::from_raw(Arc::as_ptr(call)) };
    work(&ManuallyDrop::new(Waker::from(call)))
}

/// A reference to a call without a lifetime.
pub(super) struct Uncounted(ManuallyDrop<Arc<dyn RawCall>>);

impl Uncounted {
    /// # Safety
    ///
    /// The result must not be used once `call` may have been dropped.
    #[allow(unsafe_code)]
    pub(super) unsafe fn new<C: RawCall + 'static>(call: &Arc<C>) -> Self {
        // SAFETY: The pointer is that of an `Arc`, which exists while the result is used. The
        // result is never dropped, so the count does not decrease.
        let call: Arc<C> = unsafe { Arc::from_raw(Arc::as_ptr(call)) };
        Self(ManuallyDrop::new(call))
    }
}

impl Deref for Uncounted {
    type Target = Arc<dyn RawCall>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for Uncounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uncounted").finish_non_exhaustive()
    }
}
