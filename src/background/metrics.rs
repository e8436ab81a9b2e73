//! Records tasks in the installed recorder. Without feature `metrics` these functions have no
//! effect.
#![cfg_attr(not(feature = "metrics"), expect(unused_variables))]

use std::time::Duration;

use super::{Completion, SubmitError, header::TaskHeader};
#[cfg(feature = "metrics")]
use crate::panic::ignore_panic;

/// Registers help texts, and the counters that have no name of a task as a label.
///
/// A counter that appears with its first event looks as if that event had never happened, because
/// rates are differences.
pub(super) fn register() {
    #[cfg(feature = "metrics")]
    ignore_panic(|| {
        use metrics::{Unit, describe_counter, describe_histogram};
        describe_counter!("offload_background_rejected_total", Unit::Count, "Rejected background tasks, by reason.");
        describe_counter!("offload_background_ended_total", Unit::Count, "Background tasks that ended, by outcome.");
        describe_histogram!(
            "offload_background_queue_wait_seconds",
            Unit::Seconds,
            "Time from the submission of a background task to its start."
        );
        describe_histogram!("offload_background_run_seconds", Unit::Seconds, "Run time of background tasks.");
        SubmitError::ALL.iter().for_each(|error| count_rejected(*error, 0));
    });
}

/// Records a task that was not admitted.
pub(super) fn rejected(error: SubmitError) {
    #[cfg(feature = "metrics")]
    ignore_panic(|| count_rejected(error, 1));
}

/// Records the start of a task, and registers the counters of its ends.
pub(super) fn started(header: &TaskHeader, waited: Duration) {
    #[cfg(feature = "metrics")]
    ignore_panic(|| {
        OUTCOMES.iter().for_each(|outcome| count_ended(header, outcome, 0));
        metrics::histogram!("offload_background_queue_wait_seconds", "task" => header.name.clone()).record(waited);
    });
}

/// Records the end of a task, and its run time if it started.
pub(super) fn ended(header: &TaskHeader, completion: Completion, ran: Option<Duration>) {
    #[cfg(feature = "metrics")]
    ignore_panic(|| {
        count_ended(header, outcome(completion), 1);
        if let Some(ran) = ran {
            metrics::histogram!("offload_background_run_seconds", "task" => header.name.clone()).record(ran);
        }
    });
}

/// Records a poll that blocked the runtime.
pub(super) fn blocked(header: &TaskHeader, held: Duration) {
    #[cfg(feature = "metrics")]
    ignore_panic(|| crate::blocking_metrics::record_blocked(header.name.clone(), held));
}

#[cfg(feature = "metrics")]
fn count_rejected(error: SubmitError, count: u64) {
    metrics::counter!("offload_background_rejected_total", "reason" => error.reason()).increment(count);
}

#[cfg(feature = "metrics")]
const OUTCOMES: [&str; 4] = ["skipped", "cancelled", "failed", "completed"];

/// Returns the label of a completion. The labels are those of the counters in
/// [`BackgroundStats`](super::BackgroundStats).
#[cfg(feature = "metrics")]
fn outcome(completion: Completion) -> &'static str {
    match completion {
        Completion::Skipped => "skipped",
        Completion::Cancelled => "cancelled",
        Completion::Refused | Completion::TimedOut | Completion::Failed | Completion::Lost => "failed",
        Completion::Completed => "completed",
    }
}

#[cfg(feature = "metrics")]
fn count_ended(header: &TaskHeader, outcome: &'static str, count: u64) {
    let name = header.name.clone();
    metrics::counter!("offload_background_ended_total", "task" => name, "outcome" => outcome).increment(count);
}
