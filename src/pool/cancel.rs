use std::{fmt, sync::Arc};

use super::{
    call::{CurrentCall, RawCall},
    deadline::Deadline,
    error::CancelReason,
};

/// Returns `true` if the result of the offloaded work on this thread is no longer wanted.
///
/// Check it between two steps of long synchronous work, and stop early. It becomes `true` when the
/// client disconnects, an outer timeout fires, the [deadline](crate::pool#deadlines) passes, or the
/// timeout of the pool's shutdown has passed; [`cancel_reason`] returns which one it was. In a
/// [detached](crate::offload::OffloadLayer::detached) layer it becomes `true` only at the pool's
/// shutdown. It is `false` outside offloaded work, unless the deadline of an enclosing
/// [`scope`](Deadline::scope) has passed. On other threads, for example inside `par_iter`, use a
/// [`cancellation_token`].
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
    cancel_reason().is_some()
}

/// Returns why the result of the offloaded work on this thread is no longer wanted, or `None` if it
/// is wanted. See [`cancelled`].
///
/// If there are several reasons, the first one is returned. A caller that leaves at or after the
/// deadline leaves because of it.
///
/// ```
/// use tower_offload::pool::CancelReason;
///
/// match tower_offload::pool::cancel_reason() {
///     None => {}
///     Some(CancelReason::Shutdown) => println!("save what is done"),
///     Some(reason) => println!("stop: {}", reason.as_str()),
/// }
/// ```
pub fn cancel_reason() -> Option<CancelReason> {
    CurrentCall::cancel_reason()
}

/// Returns a token that reports from any thread whether the offloaded work on this thread is
/// cancelled.
///
/// Create it in the handler, before the work spreads over other threads. Outside offloaded work the
/// token is cancelled only by the deadline of an enclosing [`scope`](Deadline::scope).
///
/// ```
/// let token = tower_offload::pool::cancellation_token();
/// std::thread::scope(|scope| {
///     scope.spawn(|| assert!(!token.is_cancelled()));
/// });
/// ```
pub fn cancellation_token() -> CancellationToken {
    CancellationToken { call: CurrentCall::get(), scope: CurrentCall::scope_deadline() }
}

/// Reports whether the result of offloaded work is still wanted. Created by [`cancellation_token`].
#[derive(Clone)]
pub struct CancellationToken {
    call: Option<Arc<dyn RawCall>>,
    scope: Deadline,
}

impl CancellationToken {
    /// Like [`cancelled`], but refers to the work in which the token was created.
    pub fn is_cancelled(&self) -> bool {
        self.reason().is_some()
    }

    /// Like [`cancel_reason`], but refers to the work in which the token was created.
    pub fn reason(&self) -> Option<CancelReason> {
        let reason = self.call.as_ref().and_then(|call| call.cancel_reason());
        reason.or_else(|| self.scope.has_passed().then_some(CancelReason::DeadlineExceeded))
    }
}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken").field("reason", &self.reason()).finish()
    }
}
