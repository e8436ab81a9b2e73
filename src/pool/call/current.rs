use std::{cell::RefCell, fmt, sync::Arc};

use super::work::Work;

thread_local! {
    /// The call that this thread polls or drops right now. Replaced and put back, not set and cleared: rayon may run a
    /// second call on the stack of a first, and `Inline` does.
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// What the work can learn of the call it belongs to.
#[derive(Clone)]
pub(crate) struct Current {
    pub(super) work: Arc<dyn Work>,
    pub(super) place: Option<Arc<dyn Place>>,
}

/// A layer's place, held for as long as the call lasts, and through it the places of the calls around it.
pub(crate) trait Place: Send + Sync + 'static {
    /// The address of the layer's state that gave this place.
    fn layer(&self) -> usize;
    /// The place of the call within which this call was made.
    fn outer(&self) -> Option<&Arc<dyn Place>>;
}

impl Current {
    /// The innermost place of the call that this thread works on, if any.
    pub(crate) fn place() -> Option<Arc<dyn Place>> {
        CURRENT.try_with(|current| current.borrow().as_ref()?.place.clone()).ok().flatten()
    }

    /// Runs `work` as part of this call.
    pub(super) fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        let _restore = Restore(replace(Some(self)));
        work()
    }
}

struct Restore(Option<Current>);

impl Drop for Restore {
    fn drop(&mut self) {
        drop(replace(self.0.take()));
    }
}

fn replace(with: Option<Current>) -> Option<Current> {
    CURRENT.try_with(|current| current.replace(with)).ok().flatten()
}

/// Whether the caller of the offloaded work that runs on this thread is gone, so that nobody waits for its result.
///
/// Ask between two steps of long sync work, and stop early. `true` after the client hung up, an outer timeout fired or
/// the pool's shutdown deadline passed. Always `false` outside offloaded work, and for a
/// [detached](crate::offload::OffloadLayer::detached) layer until the pool's deadline. On another thread than the
/// handler's own, as inside `par_iter`, ask a [`cancellation`] token.
///
/// ```
/// fn checksum(blocks: &[Vec<u8>]) -> Option<u32> {
///     let mut sum = 0_u32;
///     for block in blocks {
///         if tower_offload::pool::cancelled() {
///             return None; // nobody will read it
///         }
///         sum = block.iter().fold(sum, |sum, byte| sum.rotate_left(1) ^ u32::from(*byte));
///     }
///     Some(sum)
/// }
/// assert!(checksum(&[vec![1, 2, 3]]).is_some());
/// ```
pub fn cancelled() -> bool {
    CURRENT
        .try_with(|current| current.borrow().as_ref().is_some_and(|current| current.work.is_unwanted()))
        .unwrap_or(false)
}

/// A token that tells from any thread whether the work that runs on this thread now is still wanted.
///
/// Take it in the handler, before the work spreads over other threads. Outside offloaded work the token is never
/// cancelled.
///
/// ```
/// # use tower_offload::offload;
/// let token = offload::cancellation();
/// std::thread::scope(|scope| {
///     scope.spawn(|| assert!(!token.is_cancelled()));
/// });
/// ```
pub fn cancellation() -> Cancellation {
    let work = CURRENT.try_with(|current| current.borrow().as_ref().map(|current| current.work.clone()));
    Cancellation(work.ok().flatten())
}

/// Tells whether offloaded work is still wanted. Made by [`cancellation`].
#[derive(Clone)]
pub struct Cancellation(Option<Arc<dyn Work>>);

impl Cancellation {
    /// As [`cancelled`], for the work in which the token was made.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|work| work.is_unwanted())
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellation").field("is_cancelled", &self.is_cancelled()).finish()
    }
}
