/// What a pool does with calls during an overload.
///
/// ```
/// use tower_offload::{ThreadPool, pool::QueuePolicy};
///
/// let pool = ThreadPool::builder().queue_policy(QueuePolicy::Fifo).queue_capacity(64).build()?;
/// # let _ = pool;
/// # Ok::<(), tower_offload::pool::ThreadPoolBuildError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePolicy {
    /// First in, first out. Every queued call starts, however long it waited, and a call is
    /// rejected either at once, because the queue is full, or never. With the default capacity and
    /// calls of 5 ms on two threads, an overload makes each call wait for 2.5 s.
    Fifo,
    /// First in, first out, and bursts wait. If the queue does not drain, calls are rejected at
    /// once until it does, so that the others wait only briefly. No setting depends on the duration
    /// of calls, which is why this is the default.
    ///
    /// This applies to requests: to the calls of an [`OffloadLayer`](crate::OffloadLayer) and of an
    /// `axum::blocking` handler, whose callers get an answer if they are rejected, and to those of
    /// a `ProcessPool` as a service. Other calls were accepted before, by the program or by a
    /// background: those of [`run`](crate::pool::Pool::run), the tasks of a
    /// [`Background`](crate::Background), a [`BlockingBody`](crate::offload::BlockingBody), and
    /// what [`backpressure`](crate::OffloadLayer::backpressure) reserves. They are rejected only if
    /// the queue is full, are never shed, and are no reason for an overload. In the queue they are
    /// equal: a call of a layer waits for all that came before it, however many these are. Give the
    /// layer [`Priority::High`](crate::Priority::High) or a pool of its own if it must not.
    ///
    /// The pool becomes *overloaded* while at least two calls per thread, and at least four, wait
    /// for two windows of time, and the queue still grows after the first: by over an eighth of the
    /// calls that start, and by more than chance explains. A window takes at least 20 ms, and at
    /// least four calls per thread, and eight, start in it. The queue of a burst shrinks, and that
    /// of a fixed number of callers who wait for their answers stays the same, so neither is an
    /// overload. Calls that are rejected early because of their key or priority start none, but it
    /// lasts while they arrive.
    ///
    /// During an overload at most two calls per thread wait, and at least four. The pool rejects
    /// others with [`CallError::Overloaded`](crate::CallError::Overloaded), or with
    /// [`KeyLimited`](crate::CallError::KeyLimited) if their key has its share of these places. At
    /// its start and after each probe (below), it sheds as many of those that wait: calls of low
    /// priority and of keys with many calls first, and among equals the oldest. A call of a
    /// [key](crate::pool#keys) or group that has no other call in the queue may wait until the
    /// queue is eight times as long, so that a few busy keys do not lock out others. Calls without
    /// a key are one group. With a
    /// [`queue_capacity`](crate::pool::ThreadPoolBuilder::queue_capacity) of at most two per
    /// thread, or four, the queue is never longer, and this is the same as `Fifo`.
    ///
    /// The overload ends when fewer than an eighth of the arriving calls are rejected, or with the
    /// first call after a pause of 20 ms in which the queue became empty. To find out whether it is
    /// only kept up by rejected callers who return, the limit is lifted from time to time: first
    /// after a second or more, and then for less than 1 % of the time. Such a *probe* ends after
    /// two windows if the queue grows quickly, and otherwise after at most 1.5 s.
    #[default]
    AcceptBursts,
}
