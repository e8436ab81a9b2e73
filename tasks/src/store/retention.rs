use std::time::Duration;

/// How long final records are kept. Others always are.
///
/// Default: the last 10 000, for a day, then a tombstone for a week. At some 500 bytes each that is little; results of 64 KiB each would
/// make it 640 MB, so who keeps those in memory should keep fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    keep: usize,
    age: Duration,
    tombstones: Duration,
}

impl Retention {
    /// So many at most, those that ended last. Default 10 000.
    pub fn keep(self, keep: usize) -> Self {
        Self { keep, ..self }
    }

    /// For so long after their end at most. Default: a day, in which somebody who asked for a report comes back for it.
    pub fn age(self, age: Duration) -> Self {
        Self { age, ..self }
    }

    /// For how long after its eviction it is known that there was a record. Default: a week.
    pub fn tombstones(self, tombstones: Duration) -> Self {
        Self { tombstones, ..self }
    }

    /// As [`keep`](Self::keep).
    pub fn kept(&self) -> usize {
        self.keep
    }

    /// As [`age`](Self::age).
    pub fn max_age(&self) -> Duration {
        self.age
    }

    /// As [`tombstones`](Self::tombstones).
    pub fn tombstone_age(&self) -> Duration {
        self.tombstones
    }
}

const HOUR: Duration = Duration::from_secs(3600);

impl Default for Retention {
    fn default() -> Self {
        Self { keep: 10_000, age: 24 * HOUR, tombstones: 7 * 24 * HOUR }
    }
}

/// What a [sweep](super::TaskStore::sweep) did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Records that are gone and have a tombstone.
    pub evicted: u64,
    /// Tombstones that are gone.
    pub forgotten: u64,
    /// Records of processes whose lease ran out.
    pub lost: u64,
    /// Whether there is more to do at once.
    pub more: bool,
}
