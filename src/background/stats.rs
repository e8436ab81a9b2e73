/// What a [`Background`](super::Background) has done and is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks that were cancelled: before they ran, or told to stop while they did.
    pub cancelled: u64,
    /// Tasks that ended well.
    pub completed: u64,
    /// Tasks that failed, panicked, ran out of time or could not be run.
    pub failed: u64,
    /// Tasks that wait for a permit now.
    pub queued: usize,
    /// Registrations that were refused.
    pub rejected: u64,
    /// Places that are reserved now and have no work yet.
    pub reserved: usize,
    /// Permits that are taken now.
    pub running: usize,
    /// Reservations that were dropped without work.
    pub skipped: u64,
}
