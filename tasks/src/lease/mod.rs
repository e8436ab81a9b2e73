//! Leases of processes in a store that several processes use, and the loop that renews them.
//!
//! Tasks and job queues follow the same protocol. Each lease is a row with two times of the
//! database's clock: `expires_at`, and `steady_since`, the time of the first renewal after which
//! there was no gap.
//!
//! # Renewal
//!
//! A task of its own on a connection of its own renews the lease ([`keep_renewed`]), so that no
//! other work of the process delays it. A renewal that comes more than a quarter of a lease after
//! the previous one sets `steady_since` to the current time, and so does one that seems to come
//! before it, because the clock was set back.
//!
//! # Judgement
//!
//! A process ends the lease of *another* process if that lease has expired, and if its own row
//! shows that the database could be reached all the time: the last renewal is at most a quarter of
//! a lease ago, and it has been steady for a lease. One statement checks all of that and locks the
//! expired rows.
//!
//! # Why a live process is not judged
//!
//! All processes use the same duration of leases.
//!
//! After an outage all leases may have expired although no process has crashed.
//!
//! - An outage of more than a quarter of a lease is a gap in the renewals of every process. Nobody
//!   judges during the next lease, in which every live process renews.
//! - Before a shorter outage, the last renewal of a live process was at most an eighth of a lease
//!   ago. After it, an attempt over a dead connection takes at most a quarter. Together that is
//!   less than a lease, even if the clock is set forward by a quarter at the same time.
//! - The condition is evaluated where and when the rows are locked. So a statement that was delayed
//!   by the outage ends no lease, and neither does one after the clock of the server was changed.
//!
//! The [model](self::model) explores all interleavings of two processes, an outage and a change of
//! the clock.

#[cfg(test)]
mod model;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::StoreError;

/// Number of renewals within a lease.
#[cfg_attr(not(any(feature = "postgres", feature = "river")), allow(dead_code, reason = "for stores with leases"))]
pub(crate) const RENEWALS: u32 = 8;
/// Timeout of an attempt to renew a lease, as a number of intervals.
const ATTEMPT_TIMEOUT: u32 = 2;
/// A failed attempt is repeated after an interval divided by this.
const RETRIES: u32 = 4;
/// Lower bound of the interval, so that a lease of no duration does not occupy a thread.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// Renews a lease at this interval for as long as the store confirms it. Returns once the store
/// reports that the lease has ended.
///
/// `on_failure` is called with the error of each attempt that failed or timed out, and with the
/// number of failures since the last success.
pub(crate) async fn keep_renewed<F>(
    interval: Duration,
    mut renew: impl FnMut() -> F,
    mut on_failure: impl FnMut(&StoreError, u32),
) where
    F: Future<Output = Result<bool, StoreError>>,
{
    let interval = interval.max(MIN_INTERVAL);
    let attempt_timeout = interval.saturating_mul(ATTEMPT_TIMEOUT);
    let (mut delay, mut failures) = (interval, 0_u32);
    loop {
        sleep(delay).await;
        let begin = Instant::now();
        let renewed = timeout(attempt_timeout, renew()).await;
        let renewed = renewed.unwrap_or_else(|_| {
            Err(StoreError::unavailable(format!("the lease was not renewed within {attempt_timeout:?}")))
        });
        delay = match renewed {
            Ok(true) => {
                failures = 0;
                interval.saturating_sub(begin.elapsed())
            }
            Ok(false) => return,
            Err(error) => {
                failures = failures.saturating_add(1);
                on_failure(&error, failures);
                (interval / RETRIES).max(MIN_INTERVAL)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(4);

    #[tokio::test(start_paused = true)]
    async fn slow_and_failed_renewals_are_repeated_sooner() {
        let (begin, attempts) = (Instant::now(), Cell::new(Vec::new()));
        let renew = || {
            let mut all = attempts.take();
            all.push(begin.elapsed().as_secs());
            let number = all.len();
            attempts.set(all);
            async move {
                match number {
                    1 => sleep(Duration::from_secs(3)).await, // slow: the next one is not later
                    2 => return Err(StoreError::unavailable("gone")), // repeated after a quarter
                    3 => std::future::pending().await,        // times out after two intervals
                    4 => {}
                    5 => return Err(StoreError::unavailable("gone")), // the first one since a success
                    _ => return Ok(false),
                }
                Ok(true)
            }
        };
        let failures = RefCell::new(Vec::new());
        keep_renewed(INTERVAL, renew, |_, number| failures.borrow_mut().push(number)).await;
        assert_eq!((attempts.take(), failures.take()), (vec![4, 8, 9, 18, 22, 23], vec![1, 2, 1]));
    }

    #[tokio::test(start_paused = true)]
    async fn extreme_intervals_neither_panic_nor_spin() {
        let count = Cell::new(0);
        let renew = || {
            count.set(count.get() + 1);
            async { Ok(true) }
        };
        let none = timeout(Duration::from_millis(100), keep_renewed(Duration::ZERO, renew, |_, _| ()));
        assert!(none.await.is_err() && (1..=100).contains(&count.get()), "{} renewals", count.get());
        let longest = keep_renewed(Duration::MAX, || async { Ok(true) }, |_, _| ());
        assert!(timeout(Duration::from_secs(1), longest).await.is_err());
    }
}
