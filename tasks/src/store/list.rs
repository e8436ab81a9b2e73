use crate::{Record, TaskId, TaskState};

/// Selects records. The default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Filter {
    /// Selects records of this name.
    pub name: Option<String>,
    /// Selects records of this owner.
    pub owner: Option<String>,
    /// If `true`, selects only records without an owner.
    pub unowned: bool,
    /// Selects records in one of these states. If empty, the state does not matter.
    pub states: Vec<TaskState>,
}

impl Filter {
    /// Selects only records of this name.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Selects only records of this owner.
    #[must_use]
    pub fn owner(self, owner: impl Into<String>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// Selects only records without an owner.
    #[must_use]
    pub fn unowned(self) -> Self {
        Self { unowned: true, ..self }
    }

    /// Selects only records in this state, or in another one that was added.
    #[must_use]
    pub fn state(mut self, state: TaskState) -> Self {
        self.states.push(state);
        self
    }

    /// Returns `true` if the filter selects `record`.
    pub fn matches(&self, record: &Record) -> bool {
        self.name.as_ref().is_none_or(|name| *name == record.name)
            && self.owner.as_ref().is_none_or(|owner| Some(owner) == record.owner.as_ref())
            && !(self.unowned && record.owner.is_some())
            && (self.states.is_empty() || self.states.contains(&record.state))
    }
}

/// Selects a part of a list, which is sorted from the newest task to the oldest.
///
/// A page starts after an id, so records that are added or evicted between two requests do not
/// shift the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The page starts after this task. `None` for the first page.
    pub after: Option<TaskId>,
    /// Maximum number of records. Values outside of 1 to 1000 are clamped.
    pub limit: usize,
}

impl Page {
    /// Selects the first `limit` records, clamped to 1 to 1000.
    #[must_use]
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit }.clamped()
    }

    /// Returns the page with a limit that is in range, since its field can have any value.
    pub(crate) fn clamped(self) -> Self {
        Self { limit: self.limit.clamp(1, MAX_LIMIT), ..self }
    }

    /// Selects the records after `id`, such as [`Listing::next`] of the previous page.
    #[must_use]
    pub fn after(self, id: TaskId) -> Self {
        Self { after: Some(id), ..self }
    }
}

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 1000;

impl Default for Page {
    /// Selects the first 50 records.
    fn default() -> Self {
        Self::first(DEFAULT_LIMIT)
    }
}

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Listing {
    /// The records, newest first, without [`Record::result`] and [`Failure::detail`].
    ///
    /// [`Failure::detail`]: crate::Failure::detail
    pub records: Vec<Record>,
    /// The id [after](Page::after) which the next page starts. `None` for the last page.
    pub next: Option<TaskId>,
}

impl Listing {
    /// Creates a page from up to `page.limit + 1` records. The last one only shows that there
    /// is a next page.
    pub fn new(mut records: Vec<Record>, page: Page) -> Self {
        let page = page.clamped();
        let is_last = records.len() <= page.limit;
        records.truncate(page.limit);
        let next = if is_last { None } else { records.last().map(|record| record.id) };
        Self { records, next }
    }
}
