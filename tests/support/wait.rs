//! Waits for what sends no notification.
#![expect(clippy::disallowed_types, reason = "a paused clock passes while a thread works")]

use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Short compared with everything that tests wait for, and long enough that many tests can poll a
/// database at once.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits for a condition that another task, thread or process makes true without a notification.
///
/// # Panics
///
/// Panics with `what` if the condition is still false after [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, condition).await;
}

/// Like [`eventually`], with another limit. For conditions that would become true later in any
/// case. The limit is in real time, even if tokio's clock is paused.
///
/// # Panics
///
/// Panics with `what` if the condition is still false after `limit`.
pub async fn eventually_within(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
