//! Owners of a call that its reference count does not include, because the thread that runs the
//! call owns it anyway. Each saves two changes of the count per poll.

use std::{
    mem::ManuallyDrop,
    ptr::NonNull,
    sync::Arc,
    task::{Wake, Waker},
};

use super::{context::LayerPermit, runnable::RawCall};

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

/// References to a call and to the layer permit that it holds, without a lifetime.
#[derive(Clone, Copy)]
pub(super) struct Uncounted {
    call: NonNull<dyn RawCall>,
    layer_permit: NonNull<Option<Arc<dyn LayerPermit>>>,
}

impl Uncounted {
    /// # Safety
    ///
    /// Neither the result nor a copy of it must be used once `call` may have been dropped, or
    /// `layer_permit` may have changed.
    #[allow(unsafe_code)]
    #[inline]
    pub(super) unsafe fn new<C: RawCall + 'static>(call: &Arc<C>, layer_permit: &Option<Arc<dyn LayerPermit>>) -> Self {
        let call: *const C = Arc::as_ptr(call);
        // SAFETY: The pointer of an `Arc` is not null.
        let call: NonNull<dyn RawCall> = unsafe { NonNull::new_unchecked(call.cast_mut()) };
        Self { call, layer_permit: NonNull::from(layer_permit) }
    }

    #[allow(unsafe_code)]
    #[inline]
    pub(super) fn call(&self) -> &dyn RawCall {
        // SAFETY: The call exists while `self` is used, and calls are only shared.
        unsafe { self.call.as_ref() }
    }

    /// Returns a reference to the call that its count includes.
    #[allow(unsafe_code)]
    pub(super) fn counted(&self) -> Arc<dyn RawCall> {
        // SAFETY: The pointer is that of an `Arc`, which exists while `self` is used. It is not
        // dropped here, so the count only increases.
        let call = ManuallyDrop::new(unsafe { Arc::from_raw(self.call.as_ptr()) });
        Arc::clone(&call)
    }

    #[allow(unsafe_code)]
    #[inline]
    pub(super) fn layer_permit(&self) -> Option<&Arc<dyn LayerPermit>> {
        // SAFETY: The permit exists while `self` is used, and does not change.
        unsafe { self.layer_permit.as_ref() }.as_ref()
    }
}
