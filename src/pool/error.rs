use std::fmt;

/// Reason why a call has no result.
///
/// A layer turns this value into a response (`503` with `Retry-After`, or a gRPC status) or into an
/// error, by its strategy. See [`offload`](crate::offload#rejection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallError {
    /// The call has to wait for capacity, and waiting requires the timer of a tokio runtime.
    NoRuntime,
    /// The queue is full, the pool is [overloaded](crate::pool#overload), or the layer has reached
    /// its limit, and no capacity became available in the time that the call may wait.
    Overloaded,
    /// The key of the call has as many calls as it may have, while others have room: it has used
    /// its share of the queue or of the layer's limit (see [`pool`](crate::pool#keys)), or it has
    /// reached [`max_in_flight_per_key`](crate::OffloadLayer::max_in_flight_per_key).
    KeyLimited,
    /// The pool is shut down, or its runtime is gone.
    Closed,
    /// The deadline of the call has passed. The call never started, its work was running and is
    /// cancelled, or its result came too late. See [deadlines](crate::pool#deadlines).
    DeadlineExceeded,
    /// The caller is itself a call of the pool, and blocks its thread until this call is done. As
    /// all threads of the pool did so for 10 s, no thread was left to run this call. See [stalled
    /// pools](crate::pool#stalled-pools).
    Deadlock,
    /// The work panicked, and the layer is configured to answer panics instead of resuming them.
    Panicked,
}

impl CallError {
    /// Returns a short machine-readable name: `"no_runtime"`, `"overloaded"`, `"key_limited"`,
    /// `"closed"`, `"deadline_exceeded"`, `"deadlock"` or `"panicked"`. Metrics use it as the label
    /// `reason`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoRuntime => "no_runtime",
            Self::Overloaded => "overloaded",
            Self::KeyLimited => "key_limited",
            Self::Closed => "closed",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Deadlock => "deadlock",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRuntime => "the call has to wait, which requires a tokio runtime with time enabled",
            Self::Overloaded => "the pool has no capacity for the call",
            Self::KeyLimited => "the key of the call has as many calls as it may have",
            Self::Closed => "the pool is shut down",
            Self::DeadlineExceeded => "the deadline of the call has passed",
            Self::Deadlock => {
                "the call waited for a thread of the pool that its caller blocks: run one of them on a second pool"
            }
            Self::Panicked => "the work panicked",
        })
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for std::io::Error {
    /// The kind is `TimedOut` for a deadline that has passed, otherwise `Other`.
    fn from(error: CallError) -> Self {
        match error {
            CallError::DeadlineExceeded => Self::new(std::io::ErrorKind::TimedOut, error),
            error => Self::other(error),
        }
    }
}

/// Reason why the result of running work is no longer wanted. Returned by
/// [`cancel_reason`](super::cancel_reason).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CancelReason {
    /// The caller has left: a client that hung up, or an outer timeout.
    CallerLeft,
    /// The [deadline](crate::pool#deadlines) of the call has passed.
    DeadlineExceeded,
    /// The timeout of the pool's shutdown has passed.
    Shutdown,
}

impl CancelReason {
    /// Returns a short machine-readable name: `"caller_left"`, `"deadline_exceeded"` or
    /// `"shutdown"`. Metrics use it as the label `reason`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::CallerLeft => "caller_left",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Shutdown => "shutdown",
        }
    }
}
