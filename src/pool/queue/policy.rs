use super::Codel;

/// In which order the calls of one [`Priority`](super::Priority) are started, and whether one that waited for too long is
/// still started at all.
///
/// ```
/// use tower_offload::{ThreadPool, pool::Codel};
///
/// let pool = ThreadPool::builder().queue_policy(Codel::default()).build()?;
/// # let _ = pool;
/// # Ok::<(), tower_offload::pool::BuildError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueuePolicy {
    /// Short waits by shedding: see [`Codel`].
    Codel(Codel),
    /// First in, first out, and every call is started, however long it waited. The default: nothing is refused that found
    /// a place in the queue.
    #[default]
    Fifo,
}

impl QueuePolicy {
    pub(in crate::pool) fn check(&self) -> Result<(), super::Unfit> {
        match self {
            Self::Codel(codel) => codel.check(),
            Self::Fifo => Ok(()),
        }
    }
}

impl From<Codel> for QueuePolicy {
    fn from(codel: Codel) -> Self {
        Self::Codel(codel)
    }
}
