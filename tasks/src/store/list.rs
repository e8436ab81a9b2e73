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
    /// Selects jobs of this queue.
    pub queue: Option<String>,
    /// Selects records that contain this text in the name, the message, or the class or the message
    /// of the failure, or whose id begins with it. ASCII letters match in either case.
    pub text: Option<String>,
    /// Selects the job with this id in River's table. Only a [`SqlStore`](crate::SqlStore) has such
    /// ids.
    pub river_id: Option<i64>,
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

    /// Selects only jobs of this queue.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        Self { queue: Some(queue.into()), ..self }
    }

    /// Selects only records that contain this [text](Self::text).
    #[must_use]
    pub fn text(self, text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..self }
    }

    /// Selects only the job with this id in River's table.
    #[must_use]
    pub fn river_id(self, river_id: i64) -> Self {
        Self { river_id: Some(river_id), ..self }
    }

    /// Returns `true` if the filter selects `record`. A record does not have the
    /// [`river_id`](Self::river_id), so that is not compared.
    pub fn matches(&self, record: &Record) -> bool {
        self.name.as_ref().is_none_or(|name| *name == record.name)
            && self.queue.as_ref().is_none_or(|queue| Some(queue) == record.queue.as_ref())
            && self.text.as_ref().is_none_or(|text| contains(record, text))
            && self.owner.as_ref().is_none_or(|owner| Some(owner) == record.owner.as_ref())
            && !(self.unowned && record.owner.is_some())
            && (self.states.is_empty() || self.states.contains(&record.state))
    }
}

/// Returns `true` if a record contains the text of a filter.
fn contains(record: &Record, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let failure = record.failure.as_ref();
    let texts =
        [Some(&record.name), record.message.as_ref(), failure.map(|it| &it.class), failure.map(|it| &it.message)];
    texts.into_iter().flatten().any(|it| it.to_ascii_lowercase().contains(&text))
        || ids_with_prefix(&text).is_some_and(|(first, last)| (first..=last).contains(&record.id))
}

/// Returns the first and the last id whose text begins with `prefix`. Returns `None` if there is
/// none.
pub(crate) fn ids_with_prefix(prefix: &str) -> Option<(TaskId, TaskId)> {
    const LAST: &str = "1zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
    let rest = LAST.len().checked_sub(prefix.len())?;
    let last = LAST.get(prefix.len()..)?;
    let first = format!("{prefix}{}", "0".repeat(rest)).parse().ok()?;
    Some((first, format!("{prefix}{last}").parse().ok()?))
}

/// Maximum number of records that a list reads to find those that no index finds: by text, queue or
/// owner. A page ends there, although it is not full.
pub(crate) const MAX_SCANNED: usize = 20_000;

/// Returns the id after which a page continues that ends at `id`, whose record the filter may not
/// select. The caller must not learn that id, so only its beginning is kept: the time and 16 bits.
///
/// The next page reads records with this beginning again. `last` is the last record that the filter
/// has selected. It is not listed again, since the page continues at its id, if that is the smaller.
pub(crate) fn scan_end(id: TaskId, last: Option<TaskId>) -> TaskId {
    const KEPT: usize = 8;
    let mut bytes = *id.as_bytes();
    bytes[KEPT..].fill(0xff);
    let end = TaskId::from_bytes(bytes);
    last.map_or(end, |last| last.min(end))
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
    /// The records, newest first, without [`Record::result`] and [`Failure::detail`]. There may be
    /// fewer than [`Page::limit`], even none, although there is a next page: a list by text, queue
    /// or owner reads at most 20 000 records.
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
