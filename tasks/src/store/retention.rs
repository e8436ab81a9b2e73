use std::time::Duration;

/// Limits on finished records. Unfinished records are always kept.
///
/// They are enforced every ten seconds, by the clock of the store: on Postgres that of the server,
/// otherwise that of the process. In between there may be more and older records. A
/// [`MemoryStore`](crate::MemoryStore) never exceeds its capacity.
///
/// If the clock of the process is changed, earlier records seem older or younger by that amount:
/// after two hours forward, those of the last 22 hours are kept by default, and after
/// two hours back, those of the last 26. The maximum number still evicts earlier records first.
///
/// The default keeps the 10 000 latest records for at most a day, and tombstones for a week. A
/// typical record has 500 bytes. With results of 64 KiB the default number can take 640 MB, so keep
/// fewer of those in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Maximum number of finished records. The oldest are evicted first. Default: 10 000.
    pub max_records: usize,
    /// Maximum age of a finished record, measured from its end. Default: 24 hours, in which a
    /// client can fetch its result.
    pub max_age: Duration,
    /// Maximum time for which a tombstone marks an evicted record, so that clients get 410 instead
    /// of 404. Default: 7 days.
    ///
    /// There are at most eight tombstones for each record of `max_records`, and 80 000 in any case:
    /// of a store that evicts more within this time, the oldest are deleted earlier. A
    /// [`MemoryStore`](crate::MemoryStore) keeps eight for each record of its capacity.
    pub tombstone_ttl: Duration,
}

impl Retention {
    /// Sets the maximum number of finished records.
    #[must_use]
    pub fn max_records(self, max_records: usize) -> Self {
        Self { max_records, ..self }
    }

    /// Sets the maximum age of a finished record.
    #[must_use]
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// Sets how long a tombstone marks an evicted record.
    #[must_use]
    pub fn tombstone_ttl(self, tombstone_ttl: Duration) -> Self {
        Self { tombstone_ttl, ..self }
    }
}

/// In a store for one process, a record that ended later than this in the future ended before the
/// clock was set back. Smaller differences are common: a write may come after later ones.
pub(super) const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);

const HOUR: Duration = Duration::from_secs(3600);

impl Default for Retention {
    fn default() -> Self {
        Self { max_records: 10_000, max_age: 24 * HOUR, tombstone_ttl: 7 * 24 * HOUR }
    }
}

/// Result of a [sweep](super::TaskStore::sweep).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Number of records that were evicted and left a tombstone.
    pub evicted: u64,
    /// Number of tombstones that were deleted.
    pub forgotten: u64,
    /// `true` if another sweep has work to do at once.
    pub more: bool,
}
