//! How attempts end.

use std::{fmt, sync::Arc, time::Duration};

use riverqueue::Client;

use super::{Backoff, insert::Prepared, progress::ProgressUpdate, running::Claim};
use crate::{Failure, Json, TaskId};

/// The end of an attempt.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) claim: Claim,
    /// The id of the job's record.
    pub(super) id: TaskId,
    pub(super) max_attempts: i16,
    /// Number of failures of earlier attempts.
    pub(super) failures: u32,
    pub(super) outcome: Outcome,
    pub(super) progress: Option<ProgressUpdate>,
    /// Jobs that are enqueued in the transaction of this end if the attempt has succeeded.
    pub(super) successors: Option<Arc<Successors>>,
}

/// Jobs that a job enqueues when it succeeds.
pub(super) struct Successors {
    pub(super) jobs: Vec<Prepared>,
    /// It only composes the statements.
    pub(super) client: Client,
}

impl Successors {
    /// Returns `None` if there is no job.
    pub(super) fn new(jobs: Vec<Prepared>, client: &Client) -> Option<Arc<Self>> {
        (!jobs.is_empty()).then(|| Arc::new(Self { jobs, client: client.clone() }))
    }
}

impl fmt::Debug for Successors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.jobs.iter().map(|job| job.record.id)).finish()
    }
}

/// How the work of an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Succeeded(Json),
    Failed(Failure),
    /// The work was stopped, because the job was cancelled or the process shuts down.
    Stopped,
    /// The work has not begun. The job is queued again after this delay.
    NotBegun(Duration),
}

/// Effect of the end of an attempt on its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Completed,
    /// All attempts have failed.
    Discarded,
    /// Queued again, to start after this delay, unless the job was cancelled.
    Queued(Duration),
}

impl End {
    /// Returns the end of a claim that no attempt has.
    pub(super) fn of_claim(claim: Claim) -> Self {
        Self {
            claim,
            id: TaskId::from_bytes([0; 22]),
            max_attempts: i16::MAX,
            failures: 0,
            outcome: Outcome::NotBegun(Duration::ZERO),
            progress: None,
            successors: None,
        }
    }

    pub(super) fn next(&self, backoff: Backoff) -> Next {
        match &self.outcome {
            Outcome::Succeeded(_) => Next::Completed,
            Outcome::Failed(_) if self.claim.attempt >= self.max_attempts => Next::Discarded,
            Outcome::Failed(_) => Next::Queued(backoff.mean_delay(self.failures.saturating_add(1))),
            Outcome::Stopped => Next::Queued(Duration::ZERO),
            Outcome::NotBegun(delay) => Next::Queued(*delay),
        }
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.outcome {
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    pub(super) fn result(&self) -> Option<&Json> {
        match &self.outcome {
            Outcome::Succeeded(result) => Some(result),
            _ => None,
        }
    }

    /// Returns the jobs that the end of the attempt enqueues.
    pub(super) fn successors(&self) -> Option<&Successors> {
        match &self.outcome {
            Outcome::Succeeded(_) => self.successors.as_deref(),
            _ => None,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.outcome, Outcome::NotBegun(_))
    }

    /// Returns `true` if the attempt does not count.
    pub(super) fn is_refunded(&self) -> bool {
        matches!(self.outcome, Outcome::Stopped | Outcome::NotBegun(_))
    }

    /// Replaces an end that the database rejects by a failure that it accepts. Clients see the
    /// failure, so the error of the database is no part of it.
    pub(super) fn reject(&mut self) {
        self.outcome = Outcome::Failed(Failure::new("result", "the database rejected the result"));
        self.progress = None;
    }
}
