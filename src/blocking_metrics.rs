//! The metrics of blocked threads, which the blocking detector and backgrounds record.

use std::time::Duration;

use metrics::{SharedString, Unit, counter, describe_counter, describe_histogram, histogram};

/// Records a thread that was blocked for `duration`. `route` is a route, or the name of a task.
#[cold]
pub(crate) fn record_blocked(route: impl Into<SharedString>, duration: Duration) {
    describe_counter!("offload_blocking_total", Unit::Count, "Reports of blocked threads.");
    describe_histogram!("offload_blocking_seconds", Unit::Seconds, "How long a thread was blocked.");
    let route = route.into();
    counter!("offload_blocking_total", "route" => route.clone()).increment(1);
    histogram!("offload_blocking_seconds", "route" => route).record(duration);
}
