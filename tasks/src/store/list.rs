use crate::{Record, TaskId, TaskState};

/// Which records are wanted. Without further word all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    /// Only those of this name.
    pub name: Option<String>,
    /// Only those of this owner.
    pub owner: Option<String>,
    /// Only those in one of these states; if there are none, in any.
    pub states: Vec<TaskState>,
}

impl Filter {
    /// Only those of this name.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Only those of this owner.
    pub fn owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// Only those in this state, or another one that was named.
    pub fn state(mut self, state: TaskState) -> Self {
        self.states.push(state);
        self
    }

    /// Whether that record is wanted.
    pub fn matches(&self, record: &Record) -> bool {
        self.name.as_ref().is_none_or(|name| *name == record.name)
            && self.owner.as_ref().is_none_or(|owner| Some(owner) == record.owner.as_ref())
            && (self.states.is_empty() || self.states.contains(&record.state))
    }
}

/// Which part of a list is wanted: the newest first, from an id on. Records that come or go meanwhile shift nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Only records older than this one.
    pub before: Option<TaskId>,
    /// At most so many.
    pub limit: usize,
}

impl Page {
    /// At most so many, from the newest on; 1 to 1000.
    pub fn first(limit: usize) -> Self {
        Self { before: None, limit: limit.clamp(1, MAX_LIMIT) }
    }

    /// What comes behind that record: behind [`Listing::next`].
    pub fn before(self, id: TaskId) -> Self {
        Self { before: Some(id), ..self }
    }
}

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 1000;

impl Default for Page {
    /// The newest 50.
    fn default() -> Self {
        Self::first(DEFAULT_LIMIT)
    }
}

/// A part of a list.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Listing {
    /// The newest first.
    pub records: Vec<Record>,
    /// Where the [next page](Page::before) begins, if there may be one.
    pub next: Option<TaskId>,
}

impl Listing {
    /// Of the records that fit and one more, if there is one more.
    pub fn new(mut records: Vec<Record>, page: Page) -> Self {
        let is_last = records.len() <= page.limit;
        records.truncate(page.limit);
        let next = if is_last { None } else { records.last().map(|record| record.id) };
        Self { records, next }
    }
}
