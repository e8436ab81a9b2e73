//! The clock of pools.

use std::{sync::LazyLock, time::Duration};

use tokio::time::Instant;

/// Time since an epoch of the process, in nanoseconds.
///
/// Calls use it instead of [`Instant`], of which each comparison and subtraction costs as much as
/// several of these, and which takes twice the memory.
pub(super) type PoolTime = u64;

/// Time from the epoch to the first reading of the clock. Clocks of tokio that tests have stopped
/// may be behind it.
const BEFORE_FIRST: Duration = Duration::from_secs(86_400);

static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    #[expect(clippy::disallowed_types, reason = "a clock that a test has set forward must not be the epoch")]
    let first = Instant::from_std(std::time::Instant::now());
    first.checked_sub(BEFORE_FIRST).unwrap_or(first)
});

/// Returns the current time.
#[inline]
pub(super) fn now() -> PoolTime {
    nanos(Instant::now().saturating_duration_since(*EPOCH))
}

/// Returns the time `duration` after `time`. `PoolTime::MAX` if it is beyond that.
pub(super) fn after(time: PoolTime, duration: Duration) -> PoolTime {
    time.saturating_add(nanos(duration))
}

/// Converts a time. The result is the epoch if the clock cannot represent it.
pub(super) fn instant(time: PoolTime) -> Instant {
    EPOCH.checked_add(Duration::from_nanos(time)).unwrap_or(*EPOCH)
}

/// Returns whole nanoseconds. Without the 128-bit arithmetic of [`Duration::as_nanos`].
fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn instants_are_converted_exactly() {
        tokio::time::advance(Duration::from_nanos(1_234_567_891)).await;
        assert_eq!(instant(now()), Instant::now());
        let before = now();
        tokio::time::advance(Duration::from_nanos(1)).await;
        assert_eq!(now(), before + 1);
    }

    #[test]
    fn time_beyond_the_clock_is_the_last_one() {
        assert_eq!(after(now(), Duration::MAX), PoolTime::MAX);
    }
}
