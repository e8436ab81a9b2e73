//! The parts of recovery, and of the schema, that both databases share.

use std::time::Duration;

use crate::{
    StoreError, TaskId,
    jobs::{
        Backoff,
        outcome::{End, Next},
    },
};

/// Version of River's schema that recovery and triggers are written for.
pub(super) const RIVER_VERSION: i64 = 8;

/// Class of an attempt whose process ended before it.
pub(in crate::jobs) const LOST_CLASS: &str = "process_lost";
/// Message of such an attempt, if the process has crashed.
pub(super) const CRASH_MESSAGE: &str = "the process that ran the attempt has crashed";
/// Message of such an attempt, if a shutdown had begun.
pub(super) const SHUTDOWN_MESSAGE: &str = "the process was shut down while the attempt was running";
/// Maximum number of jobs recovered in one transaction, so that it stays short.
pub(super) const MAX_RECOVERY_BATCH: usize = 500;
/// Maximum delay of a job that is made available at once, like in River. After a longer delay,
/// River's leader makes the job available, and there may be no leader for a while.
pub(in crate::jobs) const MAX_IMMEDIATE_DELAY: Duration = Duration::from_secs(5);
/// Maximum delay: a year. The databases cannot represent every `Duration` as a date.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) const WRITE_PROGRESS: &str = "
UPDATE tower_offload_task SET progress = $3, message = $4, version = version + 1 WHERE id = $1 AND state = 1 AND attempt = $2";

/// Marks unfinished records as lost whose jobs do not exist, at the database's time `$now`.
macro_rules! lose_deleted {
    ($now:literal, $greatest:literal) => {
        concat!(
            "UPDATE tower_offload_task SET state = 14, reason = 'job_deleted', version = version + 1, finished_at = ",
            $greatest,
            "(",
            $now,
            ", coalesce(started_at, created_at)) WHERE epoch = 0 AND river_id IS NOT NULL AND state < 10 \
             AND NOT EXISTS (SELECT 1 FROM river_job WHERE id = river_id)"
        )
    };
}
pub(super) use lose_deleted;

/// Copies the ends of jobs to their records that the triggers have not copied, because they were
/// disabled or dropped. The update itself changes nothing, and makes the triggers copy them.
pub(super) const COPY_ENDS: &str = "
UPDATE river_job SET finalized_at = finalized_at WHERE state IN ('completed', 'cancelled', 'discarded')
    AND id IN (SELECT river_id FROM tower_offload_task WHERE epoch = 0 AND river_id IS NOT NULL AND state < 10)";

/// Maximum number of attempts of a job that do not count because a shutdown interrupted them. A job
/// that never ends by itself is not repeated forever.
pub(super) const MAX_INTERRUPTIONS: i64 = 10;

/// Maximum number of crashes that are distinguished. The delay does not grow further.
pub(super) const MAX_LOSSES: usize = 32;

/// Returns the delays before the next attempt of a job whose process has crashed, in milliseconds,
/// by the number of its earlier crashes.
///
/// There is no delay after the first crash, since any job of the process may have caused it. After
/// another crash this job is suspect, and the backoff applies.
pub(super) fn loss_delays(backoff: Backoff) -> Vec<i64> {
    (0..=u32::try_from(MAX_LOSSES).unwrap_or(u32::MAX))
        .map(|losses| if losses == 0 { Duration::ZERO } else { backoff.mean_delay(losses) })
        .map(|delay| millis(delay.min(MAX_DELAY)))
        .collect()
}

/// Effect of the end of an attempt on River's row.
pub(super) struct RowEnd<'a> {
    pub(super) state: &'static str,
    /// Delay before the next attempt in milliseconds. `None` if the job has ended.
    pub(super) delay: Option<i64>,
    /// The error of the attempt.
    pub(super) error: Option<&'a str>,
}

impl<'a> RowEnd<'a> {
    pub(super) fn new(end: &'a End, backoff: Backoff) -> Self {
        let next = end.next(backoff);
        let state = match next {
            Next::Completed => "completed",
            Next::Discarded => "discarded",
            Next::Queued(delay) if delay <= MAX_IMMEDIATE_DELAY => "available",
            Next::Queued(_) => "retryable",
        };
        let delay = match next {
            Next::Queued(delay) => Some(millis(delay.min(MAX_DELAY))),
            Next::Completed | Next::Discarded => None,
        };
        Self { state, delay, error: end.failure().map(|failure| &*failure.message) }
    }
}

/// Converts the id of a record.
pub(super) fn record_id(bytes: Option<Vec<u8>>) -> Option<TaskId> {
    bytes?.try_into().ok().map(TaskId::from_bytes)
}

pub(in crate::jobs) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the error for a version of River's schema that is not supported, if any.
pub(super) fn check_river_version(version: i64) -> Result<(), StoreError> {
    if version == RIVER_VERSION {
        return Ok(());
    }
    let message = format!(
        "River's schema has version {version}, but this version of tower-offload-tasks supports {RIVER_VERSION}: \
         update both together"
    );
    Err(StoreError::other(message))
}
