use std::{fmt, sync::Arc};

use tower_offload::offload::RequestHead;

use crate::TaskId;

/// Operation that a request to a [`StatusService`](super::StatusService) asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// List tasks.
    List,
    /// Open the page (feature `page`). The page then [lists](Self::List) tasks with the credentials
    /// of the browser.
    Page,
    /// Read the status of a task.
    Show(TaskId),
    /// Follow the events of a task.
    Events(TaskId),
    /// Request cancellation of a task.
    Cancel(TaskId),
    /// Read the OpenAPI document (feature `openapi`), which contains nothing about any task.
    Describe,
}

/// Permission that [`StatusService::authorize`](super::StatusService::authorize) grants to a
/// request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Rejects the request with 403.
    Denied,
    /// Permits the action on tasks without an owner. Other tasks are unknown (404), and lists omit
    /// them, so a page of a list may be short.
    Public,
    /// Permits the action on tasks of this owner and, if the request has the id, on tasks without
    /// an owner. Other tasks are unknown (404).
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

/// The authorization callback.
#[derive(Clone)]
pub(super) struct Authorize(Arc<Callback>);

type Callback = dyn Fn(&RequestHead<'_>, &Action) -> Access + Send + Sync;

impl Authorize {
    pub(super) fn new(callback: impl Fn(&RequestHead<'_>, &Action) -> Access + Send + Sync + 'static) -> Self {
        Self(Arc::new(callback))
    }

    pub(super) fn call(&self, head: &RequestHead<'_>, action: &Action) -> Access {
        (self.0)(head, action)
    }
}

impl Default for Authorize {
    /// Permits clients to read the tasks whose id they know and that have no owner.
    fn default() -> Self {
        Self::new(|_, action| match action {
            Action::Show(_) | Action::Events(_) | Action::Describe => Access::Public,
            Action::List | Action::Page | Action::Cancel(_) => Access::Denied,
        })
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
