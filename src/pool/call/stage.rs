use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::join::CallFailure;

/// Contents of a call: its future, then its result, then nothing.
#[derive(Debug)]
pub(super) enum Stage<F: Future> {
    Future(F),
    /// `None` once it was taken.
    Result(Option<Result<F::Output, CallFailure>>),
}

impl<F: Future> Stage<F> {
    /// Polls the future in place.
    ///
    /// # Panics
    ///
    /// Panics if the future is gone, which the call's state rules out.
    #[allow(unsafe_code)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self::Future(future) = self else { panic!("a complete call was polled") };
        // SAFETY: A stage is polled only inside the `Arc` allocation of its call, whose `Exclusive`
        // gives out references and never the value, and this module has no code that moves a future
        // out of `Future`: it is dropped in place, by assignment or with the allocation. So the
        // future does not move between its first poll and its drop.
        let future = unsafe { Pin::new_unchecked(future) };
        future.poll(cx)
    }

    /// Drops the future in place and then stores the result, even if that drop panics.
    pub(super) fn store_result(&mut self, result: Result<F::Output, CallFailure>) {
        *self = Self::Result(Some(result));
    }

    pub(super) fn has_future(&self) -> bool {
        matches!(self, Self::Future(_))
    }

    /// Drops future or result in place.
    pub(super) fn clear(&mut self) {
        *self = Self::Result(None);
    }

    /// Takes the result, if there is one. Leaves a future in place.
    pub(super) fn take_result(&mut self) -> Option<Result<F::Output, CallFailure>> {
        match self {
            Self::Result(result) => result.take(),
            Self::Future(_) => None,
        }
    }
}
