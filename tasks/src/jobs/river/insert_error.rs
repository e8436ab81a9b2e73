use riverqueue::Error;

use super::database::failure;
use crate::{AcceptError, StoreError};

/// Why a job was not inserted.
pub(in crate::jobs) enum InsertError {
    /// It never can be.
    Invalid(String),
    Store(StoreError),
}

impl InsertError {
    /// The same once more, for all that wait for one transaction.
    pub(in crate::jobs) fn duplicate(&self) -> Self {
        match self {
            Self::Invalid(why) => Self::Invalid(why.clone()),
            Self::Store(error) => Self::Store(error.duplicate()),
        }
    }

    /// Whether it is nothing about the jobs: others would fare no better.
    pub(in crate::jobs) fn is_about_the_database(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_unavailable() || error.is_full())
    }
}

impl From<Error> for InsertError {
    fn from(error: Error) -> Self {
        match error {
            error @ (Error::InvalidJob(_) | Error::DatabaseMismatch(_) | Error::Json(_)) => {
                Self::Invalid(error.to_string())
            }
            error => Self::Store(failure(error)),
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
            InsertError::Invalid(why) => Self::invalid(why),
            InsertError::Store(error) => Self::from(error),
        }
    }
}
