//! The deadline of a thread: of the scope that it is in, and of the call that it works on.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;

use super::{call::CurrentCall, deadline::Deadline};

/// Returns the time until the [deadline](Deadline) of the offloaded work on this thread, or of the
/// enclosing [`scope`](Deadline::scope): zero once it has passed, and `None` if there is none.
///
/// Use it to choose a cheaper method while little time is left, or as the timeout of a statement:
///
/// ```
/// use std::time::Duration;
///
/// let timeout = tower_offload::remaining().unwrap_or(Duration::from_secs(30));
/// # let _ = timeout;
/// ```
///
/// Work of a [detached](crate::offload::OffloadLayer::detached) layer has no deadline: the deadline
/// of its call only limits when it starts and how long its caller waits.
pub fn remaining() -> Option<Duration> {
    Deadline::current().remaining()
}

impl Deadline {
    /// Returns the deadline of the offloaded work on this thread, or of the enclosing scope.
    ///
    /// A deadline reaches other threads, tasks of the runtime, and tasks of a
    /// [`Background`](crate::Background) only if it is passed on:
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_offload::{Background, pool::Deadline};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let background = Background::default();
    /// let deadline = Deadline::current();
    /// background.spawn_blocking(move || deadline.sync_scope(|| {
    ///     // `remaining()` and `cancelled()` refer to the deadline of the request.
    /// })).expect("room");
    /// # background.shutdown(Duration::from_secs(5)).await;
    /// # }
    /// ```
    pub fn current() -> Self {
        CurrentCall::deadline()
    }

    /// Runs `future` with this deadline, unless an enclosing one is earlier.
    ///
    /// Calls that `future` makes get the deadline, by [`Pool::run`](super::Pool::run) and through
    /// layers. Nothing else happens at the deadline: to end other waits as well, use
    /// `tokio::time::timeout`.
    pub fn scope<F>(self, future: F) -> DeadlineScope<F> {
        DeadlineScope { deadline: self, future }
    }

    /// Like [`scope`](Self::scope), for a closure.
    pub fn sync_scope<T>(self, work: impl FnOnce() -> T) -> T {
        CurrentCall::in_scope(self, work)
    }
}

pin_project! {
    /// Future of [`Deadline::scope`].
    #[must_use = "futures do nothing unless polled"]
    pub struct DeadlineScope<F> {
        deadline: Deadline,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for DeadlineScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        CurrentCall::in_scope(*this.deadline, || this.future.poll(cx))
    }
}

impl<F> fmt::Debug for DeadlineScope<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineScope").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
