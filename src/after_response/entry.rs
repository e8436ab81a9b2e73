use std::fmt;

use super::{Outcome, attempt::Attempt};
use crate::panic::{catch_unwind, ignore_panic};
use crate::{
    background::{Reservation, TaskBody},
    pool::call::Context,
};

/// A hook, and what surrounded its registration.
pub(super) struct Hook {
    context: Context,
    run: Box<dyn FnOnce(&Outcome) + Send>,
}

impl Hook {
    pub(super) fn new(run: impl FnOnce(&Outcome) + Send + 'static) -> Self {
        Self { context: Context::capture_for_background(), run: Box::new(run) }
    }

    pub(super) fn run(self, outcome: &Outcome) {
        let Self { context, run } = self;
        ignore_panic(|| context.enter_trace(|| run(outcome)));
        ignore_panic(|| drop(context));
    }
}

/// A task that has a place and waits for the outcome.
pub(super) struct Task {
    /// Dropped before the reservation: when a drain has seen the place free, what the task held is gone.
    pub(super) body: TaskBody,
    pub(super) reservation: Reservation,
    pub(super) condition: Condition,
    pub(super) attempt: Option<Attempt>,
    /// How many tasks of the request may run at once, this one included, when it starts.
    pub(super) concurrent: usize,
    pub(super) stop_on_error: bool,
}

/// Which outcomes a task is for.
#[derive(Default)]
pub(super) enum Condition {
    Always,
    Complete,
    Flushed,
    #[default]
    Success,
    When(Box<dyn FnOnce(&Outcome) -> bool + Send>),
}

impl Condition {
    /// A closure that panics wants nothing.
    pub(super) fn holds(self, outcome: &Outcome, attempt: Option<&Attempt>) -> bool {
        match self {
            Self::Always => true,
            Self::Complete => outcome.is_complete(),
            Self::Flushed => outcome.is_flushed(),
            Self::Success => outcome.is_success() && attempt.is_none_or(Attempt::has_succeeded),
            Self::When(wants) => catch_unwind(|| wants(outcome)).unwrap_or_else(|payload| {
                ignore_panic(|| drop(payload));
                false
            }),
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "Always",
            Self::Complete => "Complete",
            Self::Flushed => "Flushed",
            Self::Success => "Success",
            Self::When(_) => "When",
        })
    }
}
