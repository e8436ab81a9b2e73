use std::{borrow::Cow, error::Error, fmt, io};

use bytes::Bytes;
use http::{Response, StatusCode};
use tower_offload::background::SubmitError;

use self::AcceptErrorKind as Kind;
use crate::{StoreError, problem::Problem};

/// Error returned when a task or a job is not accepted. Its work does not run, and its id is
/// unknown.
///
/// [`Display`](fmt::Display) contains the text of the [`StoreError`], if there is one. Send
/// [`into_response`](Self::into_response) to clients instead.
#[derive(Debug)]
pub struct AcceptError(pub(crate) AcceptErrorKind);

#[derive(Debug)]
#[allow(dead_code, reason = "some variants are constructed by the job queue only")]
pub(crate) enum AcceptErrorKind {
    /// The program passed a name or an option that is not valid.
    Invalid {
        /// The option, in words that clients may read.
        option: &'static str,
        /// The value and the remedy.
        message: Cow<'static, str>,
    },
    /// The client passed a job that cannot be stored.
    Content(Cow<'static, str>),
    /// A unique job of another owner exists.
    Duplicate,
    Closed,
    Submit(SubmitError),
    Random(getrandom::Error),
    Store(StoreError),
}

impl AcceptError {
    pub(crate) fn invalid(option: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Invalid { option, message: message.into() })
    }

    /// Returns `true` if the name, the owner or an option of the task is not valid. This is an
    /// error of the program, not of its client.
    pub fn is_invalid(&self) -> bool {
        matches!(self.0, Kind::Invalid { .. })
    }

    /// Returns `true` if the content of a job cannot be stored: it has no JSON form, contains NUL,
    /// or is too large.
    pub fn is_content(&self) -> bool {
        matches!(self.0, Kind::Content(_))
    }

    /// Returns `true` if a unique job equals a job of another owner.
    pub fn is_duplicate(&self) -> bool {
        matches!(self.0, Kind::Duplicate)
    }

    /// Returns `true` if the background or the [`Tasks`](crate::Tasks) is shutting down.
    pub fn is_closed(&self) -> bool {
        match &self.0 {
            Kind::Submit(error) => error.is_closed(),
            kind => matches!(kind, Kind::Closed),
        }
    }

    /// Returns `true` if the background or the store is full. A later attempt may succeed.
    ///
    /// A background is full if
    /// [`max_tasks`](tower_offload::background::BackgroundBuilder::max_tasks) of its tasks have not
    /// ended, 1024 by default: on a machine that is too slow for the load, this is the bound that
    /// is reached. A [`MemoryStore`](crate::MemoryStore) is full if its whole capacity is used by
    /// unfinished tasks.
    pub fn is_full(&self) -> bool {
        match &self.0 {
            Kind::Submit(error) => error.is_full(),
            Kind::Store(error) => error.is_full(),
            _ => false,
        }
    }

    /// Returns `true` if the store failed.
    pub fn is_store(&self) -> bool {
        matches!(self.0, Kind::Store(_))
    }

    /// Returns the error of the store, if it failed.
    pub fn store_error(&self) -> Option<&StoreError> {
        match &self.0 {
            Kind::Store(error) => Some(error),
            _ => None,
        }
    }

    fn reason(&self) -> &'static str {
        match &self.0 {
            _ if self.is_full() => "full",
            _ if self.is_closed() => "closed",
            Kind::Invalid { .. } => "invalid",
            Kind::Content(_) => "content",
            Kind::Duplicate => "duplicate",
            _ => "store",
        }
    }

    /// Returns a response with an `application/problem+json` body.
    ///
    /// | error | status |
    /// |---|---|
    /// | [invalid](Self::is_invalid) | 500, which names the option and not its value |
    /// | [content](Self::is_content) | 422 |
    /// | [duplicate](Self::is_duplicate) | 409 |
    /// | other | 503, with `Retry-After` |
    ///
    /// The body says which kind of error it is. Neither an error of the program nor the text of a
    /// store's error is sent. With feature `tracing` they are events of level `ERROR`.
    pub fn into_response<B: From<Bytes>>(self) -> Response<B> {
        match &self.0 {
            Kind::Store(error) => error.report_response(),
            #[cfg(feature = "tracing")]
            Kind::Invalid { .. } => {
                tracing::error!(error = &self as &dyn Error, "task not accepted, an option is not valid")
            }
            _ => {}
        }
        let status = match &self.0 {
            Kind::Invalid { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Content(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Duplicate => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let detail: Cow<'static, str> = match &self.0 {
            Kind::Invalid { option, .. } => format!("the application passed an invalid option: {option}").into(),
            Kind::Submit(_) => "task not accepted by the background".into(),
            Kind::Random(_) => "failed to generate a task id".into(),
            Kind::Store(_) => "failed to store the record of the task".into(),
            Kind::Content(_) | Kind::Duplicate | Kind::Closed => self.to_string().into(),
        };
        Problem::new(status, detail).reason(self.reason()).into_response()
    }
}

impl From<SubmitError> for AcceptError {
    fn from(error: SubmitError) -> Self {
        Self(Kind::Submit(error))
    }
}

impl From<StoreError> for AcceptError {
    fn from(error: StoreError) -> Self {
        Self(Kind::Store(error))
    }
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Invalid { message, .. } => write!(f, "task not accepted: {message}"),
            Kind::Content(message) => write!(f, "job not accepted: {message}"),
            Kind::Duplicate => f.write_str("job not accepted: an equal job exists"),
            Kind::Closed => f.write_str("task not accepted: shutting down"),
            Kind::Submit(error) => write!(f, "task not accepted: {error}"),
            Kind::Random(error) => write!(f, "task not accepted: no random number for its id: {error}"),
            Kind::Store(error) => write!(f, "task not accepted: {error}"),
        }
    }
}

impl Error for AcceptError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Invalid { .. } | Kind::Content(_) | Kind::Duplicate | Kind::Closed => None,
            Kind::Submit(error) => error.source(),
            Kind::Random(error) => error.source(),
            Kind::Store(error) => error.source(),
        }
    }
}

impl From<AcceptError> for io::Error {
    fn from(error: AcceptError) -> Self {
        Self::other(error)
    }
}
