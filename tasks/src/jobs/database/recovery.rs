//! The parts of recovery, and of the schema, that both databases share.

use std::time::Duration;

use crate::{
    StoreError,
    jobs::{Backoff, running::Claim},
};

/// Version of River's schema that recovery and triggers are written for.
pub(super) const RIVER_VERSION: i64 = 8;

/// Class and message of an attempt whose process crashed.
pub(super) const LOST_CLASS: &str = "process_lost";
pub(super) const LOST_MESSAGE: &str = "the process that ran the attempt has crashed";
pub(super) const EXPLAIN_LOSS: &str = "
UPDATE tower_offload_task SET error_class = $2, error_message = $3, error_detail = NULL WHERE river_id = $1 AND state = 1";

/// Maximum number of jobs recovered in one transaction, so that it stays short.
pub(super) const MAX_RECOVERY_BATCH: usize = 200;
/// Maximum delay of a job that is made available at once, like in River. After a longer delay,
/// River's leader makes the job available, and there may be no leader for a while.
pub(super) const MAX_IMMEDIATE_DELAY: Duration = Duration::from_secs(5);
/// Maximum delay: a year. The databases cannot represent every `Duration` as a date.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) const WRITE_PROGRESS: &str = "
UPDATE tower_offload_task SET progress = $3, message = $4, version = version + 1 WHERE id = $1 AND state = 1 AND attempt = $2";

/// A running job whose process has crashed.
pub(super) struct LostJob {
    pub(super) river_id: i64,
    pub(super) attempt: i16,
    /// Number of earlier attempts whose process crashed.
    pub(super) losses: i64,
}

impl LostJob {
    pub(super) fn of_claim(claim: &Claim) -> Self {
        Self { river_id: claim.river_id, attempt: claim.attempt, losses: 0 }
    }

    /// Returns the delay before the next attempt, in milliseconds.
    ///
    /// There is no delay after the first crash, since any job of the process may have caused it.
    /// After another crash this job is suspect, and the backoff applies.
    pub(super) fn delay_millis(&self, backoff: Backoff) -> i64 {
        let failures = u32::try_from(self.losses).unwrap_or(u32::MAX);
        let delay = if failures == 0 { Duration::ZERO } else { backoff.mean_delay(failures) };
        millis(delay.min(MAX_DELAY))
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
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
