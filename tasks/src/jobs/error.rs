use std::{borrow::Cow, error::Error, fmt};

use crate::{AcceptError, StoreError, error::AcceptErrorKind};

impl AcceptError {
    pub(super) fn closed() -> Self {
        Self(AcceptErrorKind::Closed)
    }

    pub(super) fn content(why: impl Into<Cow<'static, str>>) -> Self {
        Self(AcceptErrorKind::Content(why.into()))
    }

    pub(super) fn duplicate() -> Self {
        Self(AcceptErrorKind::Duplicate)
    }

    pub(super) fn random(error: getrandom::Error) -> Self {
        Self(AcceptErrorKind::Random(error))
    }
}

/// Why [`Builder::start`](super::Builder::start) did not.
#[derive(Debug)]
pub struct StartError(Kind);

#[derive(Debug)]
enum Kind {
    Invalid(Cow<'static, str>),
    Store(StoreError),
}

impl StartError {
    pub(super) const MEMORY: Self =
        Self(Kind::Invalid(Cow::Borrowed("the records of these tasks are not in an SqlStore")));
    pub(super) const TAKEN: Self = Self(Kind::Invalid(Cow::Borrowed("these tasks have durable jobs already")));

    pub(super) fn invalid(why: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Invalid(why.into()))
    }

    /// `true` if what was asked for cannot be, or not beside a queue that still is there: it would fail again, as long as nothing else changes.
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Invalid(_))
    }

    /// `true` if the database failed, in whatever way. [`source`](Error::source) says in which.
    pub fn is_store(&self) -> bool {
        matches!(self.0, Kind::Store(_))
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self(Kind::Store(error))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Invalid(why) => f.write_str(why),
            Kind::Store(_) => f.write_str("the queue of durable jobs could not be opened"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Invalid(_) => None,
            Kind::Store(error) => Some(error),
        }
    }
}
