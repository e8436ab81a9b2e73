use std::{fmt, sync::Arc};

use tower_offload::offload::RequestHead as Head;

use crate::TaskId;

/// What a request to a [`StatusService`](super::StatusService) wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Ask that a task be cancelled.
    Cancel(TaskId),
    /// Read the OpenAPI document, which says nothing about any task.
    Describe,
    /// Follow a task.
    Events(TaskId),
    /// List tasks.
    List,
    /// Open the page. What it shows it [lists](Self::List), as whoever opened it.
    Page,
    /// Read the status of a task.
    Show(TaskId),
}

/// What a request may do: the answer of [`StatusService::authorize`](super::StatusService::authorize).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// It may, to every task.
    All,
    /// It may not: 403.
    Denied,
    /// It may, to tasks of this owner, and to those without one if it has the id. Others are unknown: 404.
    Owner(String),
    /// It may, to tasks without an owner. Others are unknown: 404. Of a list they are left out, so that a part of it may be short.
    Public,
}

impl Access {
    /// Whether a task of that owner is there, for whoever has this access.
    pub(super) fn sees(&self, owner: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Denied => false,
            Self::Owner(name) => owner.is_none_or(|owner| owner == name),
            Self::Public => owner.is_none(),
        }
    }
}

/// Decides what a request may do.
#[derive(Clone)]
pub(super) struct Authorize(Arc<Decide>);

type Decide = dyn Fn(&Head<'_>, &Action) -> Access + Send + Sync;

impl Authorize {
    pub(super) fn new(decide: impl Fn(&Head<'_>, &Action) -> Access + Send + Sync + 'static) -> Self {
        Self(Arc::new(decide))
    }

    pub(super) fn decide(&self, head: &Head<'_>, action: &Action) -> Access {
        (self.0)(head, action)
    }
}

impl Default for Authorize {
    /// Who has an id may see what is nobody's. Everything else wants a decision.
    fn default() -> Self {
        Self::new(|_, action| match action {
            Action::Describe | Action::Events(_) | Action::Show(_) => Access::Public,
            Action::Cancel(_) | Action::List | Action::Page => Access::Denied,
        })
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
