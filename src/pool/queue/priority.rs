/// How a new call stands against others that wait in the same pool.
///
/// Only the order in which calls are started is meant: threads and calls that have started know no priority. `High`,
/// `Normal` and `Low` share the picks 16 to 4 to 1 while calls of each wait, and no lane is passed over more than 20
/// times in a row; so a steady stream of one of these does not starve another.
///
/// [`Inline`](crate::pool::Inline), which has no queue, takes calls as they come; a pool of your own can ask
/// [`Job::priority`](crate::pool::Job::priority).
///
/// See [`pool`](crate::pool#overload) for how they go together with bounds and policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Sixteen picks of 21. For what somebody looks at while it runs. It has no places in the queue of its own: if `Normal` calls
    /// have filled that, it is refused as they are; only `Low` leaves room for others.
    High,
    /// One pick of 21, and no place in the queue once half of it is taken (in a layer that waits or exerts backpressure: it
    /// waits as any other). For what may come later or not at all.
    Low,
    /// Four picks of 21. The default.
    #[default]
    Normal,
    /// For work that gives back what other calls wait for: a connection to a pool, a permit, a lock.
    ///
    /// Where calls block in `acquire` on every thread of a pool, and the call that would `release` stands in the queue
    /// behind them, nothing ever moves again. So such a call has places of its own (64), is taken first, is never shed,
    /// and a [`ThreadPool`](crate::ThreadPool) whose threads are all busy runs it on a
    /// [reserved thread](crate::pool::Builder::reserved_threads). It must not itself wait for what others hold. And it should be
    /// short: a steady stream of such calls would starve all others.
    Release,
}
