use std::fmt;

/// Why a call was not carried out.
///
/// A value, not necessarily an error: what the caller sees of it is for the layer's strategy to say (a `503` with
/// `Retry-After`, a gRPC status, a typed error). See [`offload`](crate::offload#rejection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// The pool was shut down, or its runtime is gone.
    Closed,
    /// The call stood in the queue for longer than the queueing policy allows ([`Codel`](super::Codel)), and never
    /// started. A pool of your own may answer this with [`Job::refuse`](super::Job::refuse).
    Expired,
    /// The call would have had to wait, and waiting needs a timer that only a tokio runtime has.
    NoRuntime,
    /// The queue was full, or the layer's places were taken, and stayed so for as long as the call may wait.
    Overloaded,
    /// The work panicked, and the layer was told to answer panics instead of passing them on.
    Panicked,
}

impl Rejection {
    /// A short machine-readable name, as used for the `reason` label of metrics: `"closed"`, `"expired"`,
    /// `"no_runtime"`, `"overloaded"`, `"panicked"`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::NoRuntime => "no_runtime",
            Self::Overloaded => "overloaded",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the pool is shut down",
            Self::Expired => "the call waited in the queue for too long",
            Self::NoRuntime => {
                "the call has to wait, which needs a tokio runtime with time enabled: call it inside one"
            }
            Self::Overloaded => "the pool has no room for the call",
            Self::Panicked => "the work panicked",
        })
    }
}

impl std::error::Error for Rejection {}
