use super::{Failure, Json, Reason, TaskId, TaskState, Timestamp, text::clean};

/// All that is kept of a task, as stores write and read it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// Its id.
    pub id: TaskId,
    /// What kind of task it is.
    pub name: String,
    /// Who may see it, if it is not for everybody who knows the id.
    pub owner: Option<String>,
    /// How far it is.
    pub state: TaskState,
    /// How many times it has begun.
    pub attempt: u32,
    /// How many times it may begin.
    pub max_attempts: u32,
    /// How much of it is done, from 0 to 1.
    pub progress: Option<f64>,
    /// What it is doing.
    pub message: Option<String>,
    /// Greater after each change. Of two contents of one record the one with the greater version is the later.
    pub version: u64,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it began, the last time.
    pub started_at: Option<Timestamp>,
    /// When its state became final.
    pub finished_at: Option<Timestamp>,
    /// When somebody first asked to cancel it.
    pub cancel_requested_at: Option<Timestamp>,
    /// Why it ended so.
    pub reason: Option<Reason>,
    /// What it returned, once it has succeeded.
    pub result: Option<Json>,
    /// How it failed.
    pub failure: Option<Failure>,
}

impl Record {
    /// Of a task that is queued.
    pub fn new(id: TaskId, name: impl Into<String>, created_at: Timestamp) -> Self {
        Self {
            id,
            name: name.into(),
            owner: None,
            state: TaskState::Queued,
            attempt: 0,
            max_attempts: 1,
            progress: None,
            message: None,
            version: 1,
            created_at,
            started_at: None,
            finished_at: None,
            cancel_requested_at: None,
            reason: None,
            result: None,
            failure: None,
        }
    }

    /// It begins. `false`, and nothing changed, if it may not: then its work must not run.
    pub(crate) fn start(&mut self, now: Timestamp) -> bool {
        let may = self.state.may_become(TaskState::Running);
        if may {
            self.state = TaskState::Running;
            self.attempt += 1;
            self.started_at = Some(now.max(self.created_at));
            self.version += 1;
        }
        may
    }

    /// It has come so far. `false`, and nothing changed, unless it runs and this is news.
    pub(crate) fn advance(&mut self, progress: Option<f64>, message: Option<String>) -> bool {
        let progress = progress.filter(|value| !value.is_nan()).map(|value| value.clamp(0.0, 1.0)).or(self.progress);
        let message = message.map(|message| clean(message, MAX_MESSAGE)).or_else(|| self.message.clone());
        let is_news = self.state == TaskState::Running && (progress != self.progress || message != self.message);
        if is_news {
            (self.progress, self.message) = (progress, message);
            self.version += 1;
        }
        is_news
    }

    /// Somebody asks to cancel it. `false`, and nothing changed, if it is over or was asked before.
    pub(crate) fn request_cancel(&mut self, now: Timestamp) -> bool {
        let is_news = !self.state.is_final() && self.cancel_requested_at.is_none();
        if is_news {
            self.cancel_requested_at = Some(now.max(self.created_at));
            self.version += 1;
        }
        is_news
    }

    /// It is over. `false`, and nothing changed, if it may not end so.
    pub(crate) fn finish(&mut self, ending: Ending, now: Timestamp) -> bool {
        let (state, reason, result, failure) = ending.into_parts();
        let may = state.is_final() && self.state.may_become(state);
        if may {
            (self.state, self.reason, self.result, self.failure) = (state, reason, result, failure);
            self.finished_at = Some(now.max(self.started_at.unwrap_or(self.created_at)));
            self.version += 1;
        }
        may
    }
}

const MAX_MESSAGE: usize = 1024;

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    /// With what it returned, if it ran.
    Cancelled(Reason, Option<Failure>),
    Failed(Failure),
    Lost(Reason),
    Succeeded(Json),
    TimedOut,
}

impl Ending {
    fn into_parts(self) -> (TaskState, Option<Reason>, Option<Json>, Option<Failure>) {
        match self {
            Self::Cancelled(reason, failure) => (TaskState::Cancelled, Some(reason), None, failure),
            Self::Failed(failure) => (TaskState::Failed, None, None, Some(failure)),
            Self::Lost(reason) => (TaskState::Lost, Some(reason), None, None),
            Self::Succeeded(result) => (TaskState::Succeeded, None, Some(result), None),
            Self::TimedOut => (TaskState::TimedOut, None, None, None),
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
