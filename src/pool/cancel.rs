use std::{fmt, sync::Arc};

use super::call::{CurrentCall, RawCall};

/// Returns `true` if the result of the offloaded work on this thread is no longer wanted.
///
/// Check it between two steps of long synchronous work, and stop early. It becomes `true` when the
/// client disconnects, an outer timeout fires, or the timeout of the pool's shutdown has passed. It
/// is always `false` outside offloaded work. In a
/// [detached](crate::offload::OffloadLayer::detached) layer it becomes `true` only at the pool's
/// shutdown. On other threads, for example inside `par_iter`, use a [`cancellation_token`].
///
/// ```
/// fn checksum(blocks: &[Vec<u8>]) -> Option<u32> {
///     let mut sum = 0_u32;
///     for block in blocks {
///         if tower_offload::cancelled() {
///             return None;
///         }
///         sum = block.iter().fold(sum, |sum, byte| sum.rotate_left(1) ^ u32::from(*byte));
///     }
///     Some(sum)
/// }
/// assert!(checksum(&[vec![1, 2, 3]]).is_some());
/// ```
pub fn cancelled() -> bool {
    CurrentCall::is_unwanted()
}

/// Returns a token that reports from any thread whether the offloaded work on this thread is
/// cancelled.
///
/// Create it in the handler, before the work spreads over other threads. Outside offloaded work the
/// token is never cancelled.
///
/// ```
/// let token = tower_offload::pool::cancellation_token();
/// std::thread::scope(|scope| {
///     scope.spawn(|| assert!(!token.is_cancelled()));
/// });
/// ```
pub fn cancellation_token() -> CancellationToken {
    CancellationToken(CurrentCall::get())
}

/// Reports whether the result of offloaded work is still wanted. Created by [`cancellation_token`].
#[derive(Clone)]
pub struct CancellationToken(Option<Arc<dyn RawCall>>);

impl CancellationToken {
    /// Like [`cancelled`], but refers to the work in which the token was created.
    pub fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_some_and(|call| call.is_unwanted())
    }
}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken").field("is_cancelled", &self.is_cancelled()).finish()
    }
}
