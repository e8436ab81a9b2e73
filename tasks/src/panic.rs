//! Containment of panics in user code.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::Poll,
};

pub(crate) type Payload = Box<dyn Any + Send>;

/// Runs user code and returns its panic as an error.
///
/// Unwind safety is asserted because the caller drops, and never uses, what the closure left half done.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Payload> {
    catch_unwind(AssertUnwindSafe(work))
}

/// Awaits `future` and returns a panic of its polls or of its destructor as an error.
pub(crate) async fn caught<F: Future + ?Sized>(mut future: Pin<Box<F>>) -> Result<F::Output, Payload> {
    let output = poll_fn(|cx| match guarded(|| future.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(payload) => Poll::Ready(Err(payload)),
    })
    .await;
    let dropped = guarded(|| drop(future));
    let value = output?;
    match dropped {
        Ok(()) => Ok(value),
        Err(payload) => {
            contained(|| drop(value));
            Err(payload)
        }
    }
}

/// Drops the payload of a panic. Dropping it may panic again, with a new payload; a second one is leaked.
pub(crate) fn discard_payload(payload: Payload) {
    if let Err(second) = guarded(move || drop(payload)) {
        if let Err(third) = guarded(move || drop(second)) {
            std::mem::forget(third);
        }
    }
}

/// Runs user code and ignores its panic, which the panic hook has already reported.
pub(crate) fn contained(work: impl FnOnce()) {
    guarded(work).unwrap_or_else(discard_payload);
}

/// Returns the message of a panic, as the panic hook of the standard library does.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("Box<dyn Any>")
}
