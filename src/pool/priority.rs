/// Rank of a new call among others that wait in the same pool.
///
/// A priority affects only the order in which calls start: threads and started calls have none.
/// While calls of every priority wait, `High`, `Normal` and `Low` start in the ratio 16 to 4 to 1,
/// and none of them is passed over more than 20 times in a row. A steady stream of one priority
/// therefore never starves another.
///
/// [`Inline`](crate::pool::Inline) has no queue and ignores priorities. A pool of your own can read
/// [`Runnable::priority`](crate::pool::Runnable::priority).
///
/// See [`pool`](crate::pool#overload) for how priorities, bounds and policies work together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Sixteen starts of 21. For interactive work. It has no capacity of its own: once `Normal`
    /// calls have filled the queue, a `High` call is rejected as well.
    High,
    /// Four starts of 21. The default.
    #[default]
    Normal,
    /// One start of 21. For work that can run later or not at all. It is rejected once half of the
    /// queue is in use, unless the layer waits or exerts backpressure: then it waits like any
    /// other.
    Low,
}
