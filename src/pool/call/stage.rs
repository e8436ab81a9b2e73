use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::handle::Failure;

/// The future of a call, then its output, then nothing.
#[derive(Debug)]
pub(super) enum Stage<F: Future> {
    Pending(F),
    Finished(Result<F::Output, Failure>),
    Taken,
}

impl<F: Future> Stage<F> {
    /// Polls the future where it stands.
    ///
    /// # Panics
    ///
    /// If there is no future any more; the lifecycle rules that out.
    #[allow(unsafe_code)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self::Pending(future) = self else { panic!("a finished call was polled") };
        // SAFETY: A stage is polled only inside the `Arc` allocation of its call, whose `Mutex` hands out no owned
        // value, and this module has no code that moves a future out of `Pending`: it is dropped in place, by
        // assignment in `finish` or with the allocation. So it does not move from its first poll to its drop.
        let future = unsafe { Pin::new_unchecked(future) };
        future.poll(cx)
    }

    /// Drops the future in place and puts the result there, in that order, also if the drop panics.
    pub(super) fn finish(&mut self, result: Result<F::Output, Failure>) {
        *self = Self::Finished(result);
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(self, Self::Pending(_))
    }

    /// Drops whatever there is, in place.
    pub(super) fn clear(&mut self) {
        *self = Self::Taken;
    }

    /// The result, once; the future, if there still is one, stays.
    pub(super) fn take(&mut self) -> Option<Result<F::Output, Failure>> {
        match self {
            Self::Finished(_) => match std::mem::replace(self, Self::Taken) {
                Self::Finished(result) => Some(result),
                Self::Pending(_) | Self::Taken => None,
            },
            Self::Pending(_) | Self::Taken => None,
        }
    }
}
