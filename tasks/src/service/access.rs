use std::{fmt, sync::Arc};

use tower_offload::offload::RequestHead;

use crate::TaskId;

/// Operation that a request to a [`StatusService`](super::StatusService) asks for.
///
/// Without [`authorize`](super::StatusService::authorize), `Show`, `Events` and `Describe` are
/// permitted as [`Access::Public`] and the others are denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// List tasks.
    List,
    /// Open the page (feature `page`), which contains nothing about any task. It then
    /// [lists](Self::List) tasks with the credentials of the browser, or with a token that the user
    /// enters. In the second case this action must be permitted to every client.
    Page,
    /// Read the status of a task.
    Show(TaskId),
    /// Follow the events of a task.
    Events(TaskId),
    /// Request cancellation of a task.
    Cancel(TaskId),
    /// Retry a finished job.
    Retry(TaskId),
    /// Discard a queued job.
    Discard(TaskId),
    /// Change when a queued job is due.
    Reschedule(TaskId),
    /// Retry, cancel or discard many tasks. Only tasks that the [`Access`] permits are changed.
    Bulk,
    /// Read the numbers of all tasks. Needs [`Access::All`].
    Summary,
    /// List queues and kinds of jobs. Needs [`Access::All`].
    Queues,
    /// Pause a queue. Needs [`Access::All`].
    PauseQueue,
    /// Resume a queue. Needs [`Access::All`].
    ResumeQueue,
    /// Pause a kind of jobs. Needs [`Access::All`].
    PauseKind,
    /// Resume a kind of jobs. Needs [`Access::All`].
    ResumeKind,
    /// List the sequences of jobs that hold because a job has failed. Needs [`Access::All`].
    Sequences,
    /// Continue a sequence of jobs. Needs [`Access::All`].
    ReleaseSequence,
    /// Read the OpenAPI document (feature `openapi`), which contains nothing about any task.
    Describe,
}

impl Action {
    /// Returns the name of the action for events. It does not contain the id, which is enough
    /// to read a task.
    #[cfg_attr(not(feature = "tracing"), allow(dead_code, reason = "for events"))]
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Page => "page",
            Self::Show(_) => "show",
            Self::Events(_) => "events",
            Self::Cancel(_) => "cancel",
            Self::Retry(_) => "retry",
            Self::Discard(_) => "discard",
            Self::Reschedule(_) => "reschedule",
            Self::Bulk => "bulk",
            Self::Summary => "summary",
            Self::Queues => "queues",
            Self::PauseQueue => "pause_queue",
            Self::ResumeQueue => "resume_queue",
            Self::PauseKind => "pause_kind",
            Self::ResumeKind => "resume_kind",
            Self::Sequences => "sequences",
            Self::ReleaseSequence => "release_sequence",
            Self::Describe => "describe",
        }
    }
}

/// Permission that [`StatusService::authorize`](super::StatusService::authorize) grants to a
/// request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Rejects the request with 403.
    Denied,
    /// Permits the action on tasks without an owner. Other tasks are unknown (404), and lists do
    /// not contain them.
    Public,
    /// Permits the action on tasks of this owner and, if the request has the id, on tasks without
    /// an owner. Other tasks are unknown (404). Denies actions that concern the tasks of all
    /// owners.
    Owner(String),
    /// Permits the action on every task.
    All,
}

impl Access {
    /// Returns `true` if a request with this access may know that a task of `owner` exists.
    pub(super) fn permits(&self, owner: Option<&str>) -> bool {
        match self {
            Self::Denied => false,
            Self::Public => owner.is_none(),
            Self::Owner(name) => owner.is_none_or(|owner| owner == name),
            Self::All => true,
        }
    }
}

/// The authorization callback. `None` permits clients to read the tasks whose id they know and that
/// have no owner.
#[derive(Clone, Default)]
pub(super) struct Authorize(Option<Arc<Callback>>);

type Callback = dyn Fn(&RequestHead<'_>, &Action) -> Access + Send + Sync;

impl Authorize {
    pub(super) fn new(callback: impl Fn(&RequestHead<'_>, &Action) -> Access + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(callback)))
    }

    pub(super) fn call(&self, head: &RequestHead<'_>, action: &Action) -> Access {
        match (&self.0, action) {
            (Some(callback), _) => callback(head, action),
            (None, Action::Show(_) | Action::Events(_) | Action::Describe) => Access::Public,
            (None, _) => Access::Denied,
        }
    }

    /// Returns the detail of the response to a denied request. It names the remedy only while the
    /// application has not decided on its authorization.
    pub(super) fn denial(&self) -> &'static str {
        match &self.0 {
            Some(_) => "not allowed",
            None => {
                "not allowed: until the application sets `StatusService::authorize`, \
                 clients may only read tasks whose id they know"
            }
        }
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
