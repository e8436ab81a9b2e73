//! Containment of panics in user code: closures, futures, stores, wakers and their destructors.

use std::{
    any::Any,
    future::poll_fn,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    task::Poll,
};

pub(crate) type Payload = Box<dyn Any + Send>;

/// Runs user code and returns its panic as a value. The panic hook has run by then.
///
/// Unwind safety is asserted: callers drop state that the code left incomplete and never use it.
pub(crate) fn catch_unwind<T>(work: impl FnOnce() -> T) -> Result<T, Payload> {
    panic::catch_unwind(AssertUnwindSafe(work))
}

/// Drives a future to completion and drops it. Returns the panic of either as a value.
pub(crate) async fn catch_unwind_future<F: Future + ?Sized>(mut future: Pin<Box<F>>) -> Result<F::Output, Payload> {
    let polled = poll_fn(|cx| match catch_unwind(|| future.as_mut().poll(cx)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(payload) => Poll::Ready(Err(payload)),
    });
    let completed = polled.await;
    let dropped = catch_unwind(|| drop(future));
    let value = completed?;
    match dropped {
        Ok(()) => Ok(value),
        Err(payload) => {
            ignore_panic(|| drop(value));
            Err(payload)
        }
    }
}

/// Runs user code and discards its panic, which the panic hook has reported.
pub(crate) fn ignore_panic(work: impl FnOnce()) {
    catch_unwind(work).unwrap_or_else(drop_payload);
}

/// Drops the payload of a panic, whose destructor may panic too. A payload that panics twice is
/// leaked.
pub(crate) fn drop_payload(payload: Payload) {
    if let Err(second) = catch_unwind(move || drop(payload)) {
        if let Err(third) = catch_unwind(move || drop(second)) {
            std::mem::forget(third);
        }
    }
}

/// Returns the message of a panic, by the same rule as the standard library's panic hook.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("Box<dyn Any>")
}
