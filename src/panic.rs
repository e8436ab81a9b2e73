//! Containment of panics in user code: closures, services, bodies, wakers and their destructors.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
};

/// Runs user code and returns its panic as a value. The panic hook has run by then.
///
/// Unwind safety is asserted, because callers drop values that a panic left inconsistent and never
/// use them.
#[inline]
pub(crate) fn catch_unwind<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    panic::catch_unwind(AssertUnwindSafe(work))
}

/// Runs user code and discards its panic, which the panic hook has reported.
#[inline]
pub(crate) fn ignore_panic(work: impl FnOnce()) {
    catch_unwind(work).unwrap_or_else(drop_payload);
}

/// Drops the payload of a panic, whose destructor may panic too. A payload that panics twice is
/// leaked.
pub(crate) fn drop_payload(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(move || drop(payload)) {
        if let Err(third) = catch_unwind(move || drop(second)) {
            std::mem::forget(third);
        }
    }
}

/// Returns the message of a panic, found like the standard library's panic hook finds it.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("Box<dyn Any>")
}
