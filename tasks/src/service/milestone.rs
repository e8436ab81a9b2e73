use std::{fmt, str::FromStr};

use crate::{Record, Status, TaskState};

/// A place in the story of a task, and the `id` of the event that tells it. The order is that of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    attempt: u32,
    phase: u8,
    /// Of the record, for news within a phase; else 0.
    version: u64,
}

const QUEUED: u8 = 0;
const STARTED: u8 = 1;
const PROGRESS: u8 = 2;
const QUEUED_AGAIN: u8 = 3;
const FINISHED: u8 = 4;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.attempt, self.phase, self.version)
    }
}

impl FromStr for Place {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '.');
        let mut part = || parts.next().unwrap_or_default();
        Ok(Self { attempt: part().parse()?, phase: part().parse()?, version: part().parse()? })
    }
}

/// Something that has happened to a task, and its status at that time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Milestone {
    pub(super) place: Place,
    pub(super) event: &'static str,
    pub(super) status: Status,
}

impl Milestone {
    /// What there is to tell of a record to somebody who was told everything up to a place, in order. What a record no longer says, as
    /// the progress of an attempt that is over, is not told.
    pub(super) fn after(told: Option<Place>, record: &Record) -> Vec<Self> {
        let all = [queued(record), started(record), progress(record), queued_again(record), finished(record)];
        all.into_iter().flatten().filter(|milestone| told.is_none_or(|told| milestone.place > told)).collect()
    }

    /// As it goes over the wire. JSON may have line breaks between its tokens, which would end the event.
    pub(super) fn write(&self, text: &mut String) {
        let data = serde_json::to_string(&self.status).unwrap_or_default();
        *text += &format!("id: {}\nevent: {}\n", self.place, self.event);
        for line in data.split(['\n', '\r']) {
            *text += &format!("data: {line}\n");
        }
        text.push('\n');
    }
}

fn milestone(record: &Record, phase: u8, event: &'static str, status: Status) -> Milestone {
    let version = if phase == PROGRESS { record.version } else { 0 };
    Milestone { place: Place { attempt: status.attempt, phase, version }, event, status }
}

fn queued(record: &Record) -> Option<Milestone> {
    let status = Status { state: TaskState::Queued, attempt: 0, started_at: None, ..begun(record) };
    Some(milestone(record, QUEUED, "queued", status))
}

fn started(record: &Record) -> Option<Milestone> {
    let status = Status { state: TaskState::Running, ..begun(record) };
    (record.attempt > 0).then(|| milestone(record, STARTED, "started", status))
}

fn progress(record: &Record) -> Option<Milestone> {
    let is_news = record.progress.is_some() || record.message.is_some() || record.cancel_requested_at.is_some();
    (record.state == TaskState::Running && is_news)
        .then(|| milestone(record, PROGRESS, "progress", Status::from(record)))
}

fn queued_again(record: &Record) -> Option<Milestone> {
    (record.state == TaskState::Queued && record.attempt > 0)
        .then(|| milestone(record, QUEUED_AGAIN, "queued", Status::from(record)))
}

fn finished(record: &Record) -> Option<Milestone> {
    record.state.is_final().then(|| milestone(record, FINISHED, "finished", Status::from(record)))
}

/// The status without what came after the beginning.
fn begun(record: &Record) -> Status {
    let status = Status::from(record);
    Status {
        progress: None,
        message: None,
        finished_at: None,
        cancel_requested_at: None,
        reason: None,
        result: None,
        error: None,
        ..status
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
