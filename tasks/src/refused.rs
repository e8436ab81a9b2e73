use std::{borrow::Cow, error::Error, fmt};

use bytes::Bytes;
use http::{Response, StatusCode};

use super::{StoreError, problem::Problem};
use tower_offload::background::Rejected;

/// Why a task was not accepted: nothing of it will run, and nobody will find it.
#[derive(Debug)]
pub struct Refused(Kind);

#[derive(Debug)]
enum Kind {
    Background(Rejected),
    Closed,
    #[cfg(feature = "river")]
    Content(Cow<'static, str>),
    #[cfg(feature = "river")]
    Duplicate,
    Invalid(Cow<'static, str>),
    Random(getrandom::Error),
    Store(StoreError),
}

impl Refused {
    pub(crate) fn closed() -> Self {
        Self(Kind::Closed)
    }

    pub(crate) fn random(error: getrandom::Error) -> Self {
        Self(Kind::Random(error))
    }

    pub(crate) fn invalid(why: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Invalid(why.into()))
    }

    #[cfg(feature = "river")]
    pub(crate) fn content(why: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Content(why.into()))
    }

    /// `true` if the content of a job cannot be kept: no JSON, too large, or with NUL in it.
    #[cfg(feature = "river")]
    #[cfg_attr(docsrs, doc(cfg(feature = "river")))]
    pub fn is_content(&self) -> bool {
        matches!(self.0, Kind::Content(_))
    }

    #[cfg(feature = "river")]
    pub(crate) fn duplicate() -> Self {
        Self(Kind::Duplicate)
    }

    /// `true` if it should be unique, and there is one like it that is somebody else's.
    #[cfg(feature = "river")]
    #[cfg_attr(docsrs, doc(cfg(feature = "river")))]
    pub fn is_duplicate(&self) -> bool {
        matches!(self.0, Kind::Duplicate)
    }

    /// `true` if neither the background nor `Tasks` takes any more: the process is about to end.
    pub fn is_closed(&self) -> bool {
        match &self.0 {
            Kind::Background(rejected) => rejected.is_closed(),
            kind => matches!(kind, Kind::Closed),
        }
    }

    /// `true` if there is no room, in the background or in the store. Later there may be.
    pub fn is_full(&self) -> bool {
        match &self.0 {
            Kind::Background(rejected) => rejected.is_full(),
            Kind::Store(error) => error.is_full(),
            _ => false,
        }
    }

    /// `true` if its name or owner cannot be kept: empty, too long, or with control characters in it; of a durable job also if it is to wait in a queue, or
    /// with a priority, that there cannot be.
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Invalid(_))
    }

    /// `true` if the store failed, in whatever way. [`source`](Error::source) says in which.
    pub fn is_store(&self) -> bool {
        matches!(self.0, Kind::Store(_))
    }

    fn reason(&self) -> &'static str {
        match &self.0 {
            _ if self.is_full() => "full",
            _ if self.is_closed() => "closed",
            Kind::Invalid(_) => "invalid",
            #[cfg(feature = "river")]
            Kind::Content(_) => "content",
            #[cfg(feature = "river")]
            Kind::Duplicate => "duplicate",
            _ => "store",
        }
    }

    /// As an answer: 503 with `Retry-After`, or 500 for what is [invalid](Self::is_invalid), for that is the program's own; for a durable
    /// job 422 for its content, and 409 for a duplicate. The body
    /// is `application/problem+json` and tells no more than the [`Display`](fmt::Display) of this. Why the store failed is an event of level
    /// `ERROR` with feature `tracing`.
    pub fn into_response<B: From<Bytes>>(self) -> Response<B> {
        if let Kind::Store(error) = &self.0 {
            error.report();
        }
        let status = match &self.0 {
            Kind::Invalid(_) => StatusCode::INTERNAL_SERVER_ERROR,
            #[cfg(feature = "river")]
            Kind::Content(_) => StatusCode::UNPROCESSABLE_ENTITY,
            #[cfg(feature = "river")]
            Kind::Duplicate => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, self.to_string()).reason(self.reason()).into_response()
    }
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Self {
        Self(Kind::Background(rejected))
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self(Kind::Store(error))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Background(_) => f.write_str("there is no place for the task"),
            Kind::Closed => f.write_str("no tasks are taken any more"),
            #[cfg(feature = "river")]
            Kind::Content(why) => write!(f, "the task cannot be kept: {why}"),
            Kind::Invalid(why) => write!(f, "the task cannot be kept: {why}"),
            #[cfg(feature = "river")]
            Kind::Duplicate => f.write_str("there is a task like it already"),
            Kind::Random(_) => f.write_str("the task got no id"),
            Kind::Store(_) => f.write_str("the task could not be written down"),
        }
    }
}

impl Error for Refused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Background(rejected) => Some(rejected),
            Kind::Closed | Kind::Invalid(_) => None,
            #[cfg(feature = "river")]
            Kind::Content(_) | Kind::Duplicate => None,
            Kind::Random(error) => Some(error),
            Kind::Store(error) => Some(error),
        }
    }
}
