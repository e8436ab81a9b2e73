use std::time::Duration;

use super::river::UniqueOpts;

/// What makes two jobs the same, so that only one of them is enqueued.
///
/// Kept until the job is cancelled, discarded or deleted: also one that is done stands for its duplicates, until River deletes it after a day.
#[derive(Debug, Clone)]
pub struct Unique(UniqueOpts);

impl Unique {
    /// The same kind and the same content.
    pub fn by_content() -> Self {
        Self(UniqueOpts::new().with_by_args(true))
    }

    /// The same kind.
    pub fn by_kind() -> Self {
        Self(UniqueOpts::new())
    }

    /// Only among those of the same stretch of time. Stretches begin at whole multiples of their length, counted from 1970; whole seconds, at
    /// least one.
    pub fn within(self, period: Duration) -> Self {
        Self(self.0.with_by_period(Duration::from_secs(period.as_secs().max(1))))
    }

    /// Only among those of the same queue.
    pub fn by_queue(self) -> Self {
        Self(self.0.with_by_queue(true))
    }

    pub(super) fn into_options(self) -> UniqueOpts {
        self.0
    }
}
