use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    CallError, CallOptions, Pool,
    call::{self, CallFailure, CurrentCall, JoinHandle, OnCallerDrop},
    permits::PermitKind,
    queue_permit::{Admitted, QueuePermit},
};

/// Future of [`Pool::run`] and [`Pool::run_with`]: the value of the closure, or the reason why it
/// has none.
#[must_use = "dropping it cancels the closure"]
pub struct Run<T>(Result<JoinHandle<T>, CallError>);

impl<T: Send + 'static> Run<T> {
    /// Makes a call. It is exempt if no client could be told that the pool is overloaded.
    pub(crate) fn new<W>(pool: Arc<dyn Pool>, options: CallOptions, kind: PermitKind, work: W) -> Self
    where
        W: FnOnce() -> T + Send + 'static,
    {
        let (options, layer_permit) = CurrentCall::inherit(options);
        if options.deadline.has_passed() {
            pool.admission().metrics().rejected(CallError::DeadlineExceeded);
            return Self(Err(CallError::DeadlineExceeded));
        }
        Self(QueuePermit::try_acquire_counted(pool, options, kind).map(|queue_permit| {
            let admitted = Admitted { queue_permit, layer_permit, options };
            call::spawn(admitted, call::Context::capture(), OnCallerDrop::Cancel, async move { work() })
        }))
    }
}

impl<T> Future for Run<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(handle) => Poll::Ready(match ready!(Pin::new(handle).poll(cx)) {
                Ok(value) => Ok(value),
                Err(CallFailure::Rejected(error)) => Err(error),
                Err(CallFailure::Panicked(payload)) => resume_unwind(payload),
            }),
            Err(error) => Poll::Ready(Err(*error)),
        }
    }
}

impl<T> fmt::Debug for Run<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Run").field(&self.0).finish()
    }
}
