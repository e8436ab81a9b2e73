use std::{borrow::Cow, error::Error, fmt, io};

use riverqueue::Error as RiverError;

use crate::{AcceptError, StoreError, error::AcceptErrorKind, store::sql::store_error};

/// Error of [`JobsBuilder::start`](super::JobsBuilder::start).
#[derive(Debug)]
pub struct StartError(StartErrorKind);

#[derive(Debug)]
enum StartErrorKind {
    Invalid(Cow<'static, str>),
    Store(StoreError),
}

impl StartError {
    pub(super) const NO_DATABASE: Self = Self::fixed("jobs need tasks whose store is an `SqlStore`");
    pub(super) const ALREADY_STARTED: Self =
        Self::fixed("a `Jobs` is already running on this store: clone it, or shut it down first");

    const fn fixed(message: &'static str) -> Self {
        Self(StartErrorKind::Invalid(Cow::Borrowed(message)))
    }

    pub(super) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self(StartErrorKind::Invalid(message.into()))
    }

    /// Returns `true` if an option is not valid, the store is not an `SqlStore`, or another queue
    /// is running on the store.
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, StartErrorKind::Invalid(_))
    }

    /// Returns `true` if the database failed.
    pub fn is_store(&self) -> bool {
        matches!(self.0, StartErrorKind::Store(_))
    }

    /// Returns the error of the database, if it failed.
    pub fn store_error(&self) -> Option<&StoreError> {
        match &self.0 {
            StartErrorKind::Invalid(_) => None,
            StartErrorKind::Store(error) => Some(error),
        }
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self(StartErrorKind::Store(error))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            StartErrorKind::Invalid(message) => f.write_str(message),
            StartErrorKind::Store(error) => write!(f, "failed to start the job queue: {error}"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            StartErrorKind::Invalid(_) => None,
            StartErrorKind::Store(error) => error.source(),
        }
    }
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        Self::other(error)
    }
}

/// Error inserting a job.
pub(super) enum InsertError {
    /// The job is not valid, so it can never be inserted.
    Invalid(String),
    /// An equal job may exist, in a transaction that has not ended.
    Locked,
    Store(StoreError),
}

impl InsertError {
    /// Returns a copy of the error for another job of the same transaction.
    pub(super) fn duplicate(&self) -> Self {
        match self {
            Self::Invalid(message) => Self::Invalid(message.clone()),
            Self::Locked => Self::Locked,
            Self::Store(error) => Self::Store(error.duplicate()),
        }
    }

    /// Returns `true` if the error does not depend on the jobs, so that a retry of each job would
    /// fail too.
    pub(super) fn is_unrelated_to_jobs(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_unavailable() || error.is_full())
    }
}

impl From<RiverError> for InsertError {
    fn from(error: RiverError) -> Self {
        match error {
            error @ (RiverError::InvalidJob(_) | RiverError::DatabaseMismatch(_) | RiverError::Json(_)) => {
                Self::Invalid(error.to_string())
            }
            error => Self::Store(river_error(error)),
        }
    }
}

impl From<StoreError> for InsertError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<InsertError> for AcceptError {
    fn from(error: InsertError) -> Self {
        match error {
            InsertError::Invalid(message) => Self::invalid("job or transaction", message),
            InsertError::Locked => Self::from(StoreError::unavailable(
                "an equal job is part of a transaction that has not ended: commit it or roll it back",
            )),
            InsertError::Store(error) => Self::from(error),
        }
    }
}

impl AcceptError {
    pub(super) fn closed() -> Self {
        Self(AcceptErrorKind::Closed)
    }

    pub(super) fn content(message: impl Into<Cow<'static, str>>) -> Self {
        Self(AcceptErrorKind::Content(message.into()))
    }

    pub(super) fn duplicate() -> Self {
        Self(AcceptErrorKind::Duplicate)
    }

    pub(super) fn random(error: getrandom::Error) -> Self {
        Self(AcceptErrorKind::Random(error))
    }
}

#[cfg(feature = "postgres")]
impl crate::store::sql::postgres::connection::TransactionError for RiverError {
    fn database(&self) -> Option<&riverqueue::sqlx::Error> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

/// Converts an error of River. Database errors are classified like in the store.
pub(super) fn river_error(error: RiverError) -> StoreError {
    match error {
        RiverError::Database(error) => store_error(error),
        error => StoreError::other(error),
    }
}
