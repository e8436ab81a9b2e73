use std::{fmt, sync::Arc, time::Duration};

use super::Reject;
use crate::pool::CallError;

/// Answers as a closure says. Made by [`OffloadLayer::reject_with`](crate::offload::OffloadLayer::reject_with).
pub struct With<F>(Arc<F>);

impl<F> With<F> {
    pub(crate) fn new(answer: F) -> Self {
        Self(Arc::new(answer))
    }
}

impl<Req, Res, E, F> Reject<Req, Res, E> for With<F>
where
    F: Fn(CallError) -> Result<Res, E> + Send + Sync + 'static,
{
    type Error = E;
    type Hint = ();

    fn hint(&self, _: &Req) {}

    fn map_err(&self, error: E) -> E {
        error
    }

    fn reject(&self, (): (), rejection: CallError, _: Duration) -> Result<Res, E> {
        (self.0)(rejection)
    }
}

impl<F> Clone for With<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F> fmt::Debug for With<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("With")
    }
}
