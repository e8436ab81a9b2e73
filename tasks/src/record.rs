use crate::{Failure, Json, Reason, TaskId, TaskState, Timestamp, text::sanitize};

/// Everything that is stored of a task.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// The id of the task.
    pub id: TaskId,
    /// The name of the task.
    pub name: String,
    /// The owner, who may see the task. `None` if everyone who knows the id may see it.
    pub owner: Option<String>,
    /// The queue of a job. `None` for a task that is not a job. Only the job queue sets it.
    pub queue: Option<String>,
    /// The job that has enqueued this one. Only the job queue sets it.
    pub parent: Option<TaskId>,
    /// The state.
    pub state: TaskState,
    /// The number of attempts that were started.
    pub attempt: u32,
    /// The maximum number of attempts.
    pub max_attempts: u32,
    /// The fraction of the work that is done, from 0 to 1.
    pub progress: Option<f64>,
    /// The latest progress message.
    pub message: Option<String>,
    /// Grows with each change. Of two versions of one record, the greater is the newer.
    pub version: u64,
    /// When the task was accepted.
    pub created_at: Timestamp,
    /// When the next attempt of a queued job is due, if it is delayed. Only the job queue sets it.
    pub due_at: Option<Timestamp>,
    /// When the latest attempt started.
    pub started_at: Option<Timestamp>,
    /// When the state became final.
    pub finished_at: Option<Timestamp>,
    /// When cancellation was first requested.
    pub cancel_requested_at: Option<Timestamp>,
    /// The reason for the state, if the state does not explain itself.
    pub reason: Option<Reason>,
    /// The result of a task that succeeded.
    pub result: Option<Json>,
    /// The failure of a task that failed, or that failed after it was cancelled.
    pub failure: Option<Failure>,
}

impl Record {
    /// Creates the record of a queued task.
    pub fn new(id: TaskId, name: impl Into<String>, created_at: Timestamp) -> Self {
        Self {
            id,
            name: name.into(),
            owner: None,
            queue: None,
            parent: None,
            state: TaskState::Queued,
            attempt: 0,
            max_attempts: 1,
            progress: None,
            message: None,
            version: 1,
            created_at,
            due_at: None,
            started_at: None,
            finished_at: None,
            cancel_requested_at: None,
            reason: None,
            result: None,
            failure: None,
        }
    }

    /// Returns a copy for a list: without the result and the details of the failure, each of which
    /// can have 64 KiB.
    pub(crate) fn summary(&self) -> Self {
        let failure = self.failure.as_ref().map(|failure| {
            let (class, message) = (failure.class.clone(), failure.message.clone());
            Failure { class, message, detail: None }
        });
        Self {
            id: self.id,
            name: self.name.clone(),
            owner: self.owner.clone(),
            queue: self.queue.clone(),
            parent: self.parent,
            state: self.state,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            progress: self.progress,
            message: self.message.clone(),
            version: self.version,
            created_at: self.created_at,
            due_at: self.due_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            cancel_requested_at: self.cancel_requested_at,
            reason: self.reason,
            result: None,
            failure,
        }
    }

    /// Starts an attempt. Returns `false`, without a change, if the task must not run.
    pub(crate) fn start(&mut self, now: Timestamp) -> bool {
        let may_start = self.state.may_become(TaskState::Running);
        if may_start {
            self.state = TaskState::Running;
            self.attempt += 1;
            self.started_at = Some(now.max(self.created_at));
            self.version += 1;
        }
        may_start
    }

    /// Sets the progress and the message, unless they are `None`. Returns `false`, without a
    /// change, if the task is not running or neither value is new.
    pub(crate) fn advance(&mut self, progress: Option<f64>, message: Option<String>) -> bool {
        let progress = progress.filter(|value| !value.is_nan()).map(|value| value.clamp(0.0, 1.0)).or(self.progress);
        let message = message.map(|message| sanitize(message, MAX_MESSAGE_BYTES)).or_else(|| self.message.clone());
        let is_new = self.state == TaskState::Running && (progress != self.progress || message != self.message);
        if is_new {
            (self.progress, self.message) = (progress, message);
            self.version += 1;
        }
        is_new
    }

    /// Records a cancel request. Returns `false`, without a change, if the task has finished or
    /// there was a request before.
    pub(crate) fn request_cancel(&mut self, now: Timestamp) -> bool {
        let is_new = !self.state.is_final() && self.cancel_requested_at.is_none();
        if is_new {
            self.cancel_requested_at = Some(now.max(self.created_at));
            self.version += 1;
        }
        is_new
    }

    /// Finishes the task. Returns `false`, without a change, if its state does not permit this
    /// ending.
    pub(crate) fn finish(&mut self, ending: Ending, now: Timestamp) -> bool {
        let (state, reason, result, failure) = ending.into_parts();
        let may_finish = state.is_final() && self.state.may_become(state);
        if may_finish {
            (self.state, self.reason, self.result, self.failure) = (state, reason, result, failure);
            self.finished_at = Some(now.max(self.started_at.unwrap_or(self.created_at)));
            self.version += 1;
        }
        may_finish
    }
}

const MAX_MESSAGE_BYTES: usize = 1024;

/// A final state with its details.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    Succeeded(Json),
    Failed(Failure),
    /// Contains the error that the work returned after it was cancelled, if any.
    Cancelled(Reason, Option<Failure>),
    TimedOut,
    Lost(Reason),
}

impl Ending {
    fn into_parts(self) -> (TaskState, Option<Reason>, Option<Json>, Option<Failure>) {
        match self {
            Self::Succeeded(result) => (TaskState::Succeeded, None, Some(result), None),
            Self::Failed(failure) => (TaskState::Failed, None, None, Some(failure)),
            Self::Cancelled(reason, failure) => (TaskState::Cancelled, Some(reason), None, failure),
            Self::TimedOut => (TaskState::TimedOut, None, None, None),
            Self::Lost(reason) => (TaskState::Lost, Some(reason), None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::{Ending, Record};
    use crate::{Failure, Json, Reason, TaskId, TaskState, Timestamp};

    #[derive(Debug, Clone)]
    enum Change {
        Advance(f64, String),
        Finish(Ending),
        RequestCancel,
        Start,
    }

    impl Change {
        /// Returns `true` if the record changed.
        fn apply(self, record: &mut Record, now: Timestamp) -> bool {
            match self {
                Self::Advance(progress, message) => record.advance(Some(progress), Some(message)),
                Self::Finish(ending) => record.finish(ending, now),
                Self::RequestCancel => record.request_cancel(now),
                Self::Start => record.start(now),
            }
        }
    }

    fn endings() -> impl Strategy<Value = Ending> {
        prop_oneof![
            Just(Ending::Cancelled(Reason::Requested, None)),
            Just(Ending::Failed(Failure::new("class", "message"))),
            Just(Ending::Lost(Reason::ProcessLost)),
            Just(Ending::Succeeded(Json::new(&1).unwrap())),
            Just(Ending::TimedOut),
        ]
    }

    fn changes() -> impl Strategy<Value = Vec<(Change, u64)>> {
        let change = prop_oneof![
            3 => (any::<f64>(), "[\0-z]{0,4}").prop_map(|(progress, message)| Change::Advance(progress, message)),
            1 => endings().prop_map(Change::Finish),
            1 => Just(Change::RequestCancel),
            2 => Just(Change::Start),
        ];
        prop::collection::vec((change, 0..2000_u64), 0..12)
    }

    proptest! {
        /// No ending is dropped: a record that is not final after `finish` would never become
        /// final.
        #[test]
        fn every_ending_ends_every_unfinished_record(changes in changes(), ending in endings(), now in 0..2000_u64) {
            let mut record = Record::new(TaskId::from_bytes([7; 22]), "name", Timestamp::from_millis(1000));
            for (change, now) in changes {
                change.apply(&mut record, Timestamp::from_millis(now));
                let (mut ended, now) = (record.clone(), Timestamp::from_millis(now.max(1)));
                prop_assert_eq!(ended.finish(ending.clone(), now), !record.state.is_final());
                prop_assert!(ended.state.is_final() && ended.finished_at.is_some());
            }
            let was_final = record.state.is_final();
            prop_assert_eq!(record.finish(ending, Timestamp::from_millis(now)), !was_final);
            prop_assert!(record.state.is_final() && !record.start(Timestamp::from_millis(now)));
        }

        /// Holds even if the clock goes backwards.
        #[test]
        fn records_only_move_forward_and_final_ones_never_change(changes in changes()) {
            let mut record = Record::new(TaskId::from_bytes([7; 22]), "name", Timestamp::from_millis(1000));
            for (change, now) in changes {
                let (before, now) = (record.clone(), Timestamp::from_millis(now));
                let changed = change.apply(&mut record, now);
                prop_assert_eq!(record.version, before.version + u64::from(changed));
                if !changed {
                    prop_assert_eq!(&record, &before);
                }
                prop_assert!(!before.state.is_final() || !changed);
                prop_assert!(record.state == before.state || before.state.may_become(record.state));
                prop_assert_eq!(record.finished_at.is_some(), record.state.is_final());
                prop_assert_eq!(record.result.is_some(), record.state == TaskState::Succeeded);
                prop_assert!(record.failure.is_some() <= matches!(record.state, TaskState::Failed | TaskState::Cancelled));
                prop_assert!(record.progress.is_none_or(|progress| (0.0..=1.0).contains(&progress)));
                prop_assert!(record.message.as_ref().is_none_or(|message| !message.contains('\0')));
                prop_assert!(record.started_at.is_none_or(|at| at >= record.created_at));
                prop_assert!(record.finished_at.is_none_or(|at| Some(at) >= record.started_at && at >= record.created_at));
            }
        }
    }
}
