use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Runs foreign code and hands its panic back as a value.
///
/// Unwind safety is asserted: whatever the code left half done is dropped by the caller of this function, never used.
#[inline]
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(work))
}

/// Drops the payload of a panic, which may panic itself. One that panics over and over is leaked.
pub(crate) fn discard_payload(payload: Box<dyn Any + Send>) {
    if let Err(second) = guarded(move || drop(payload)) {
        if let Err(third) = guarded(move || drop(second)) {
            std::mem::forget(third);
        }
    }
}

/// Runs foreign code whose panic is nobody's. The panic hook has printed it.
#[inline]
pub(crate) fn contained(foreign: impl FnOnce()) {
    guarded(foreign).unwrap_or_else(discard_payload);
}

/// The text of a panic, as the standard library's own hook finds it.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("Box<dyn Any>")
}
