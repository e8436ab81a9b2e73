use std::{error::Error, fmt, io};

/// Error of a [`TaskStore`](super::TaskStore): a kind, and the error of the store.
///
/// [`Display`](fmt::Display) contains the text of the store's error, which may name files and
/// servers: do not send it to clients. Like in [`std::io::Error`], [`source`](Error::source)
/// returns the source of the store's error, and [`get_ref`](Self::get_ref) that error itself.
#[derive(Debug)]
pub struct StoreError {
    pub(super) kind: Kind,
    inner: Source,
}

type Source = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unavailable,
    Locked,
    Full,
    Other,
}

/// Number of kinds.
#[cfg(feature = "tracing")]
pub(super) const KINDS: usize = Kind::Other as usize + 1;

impl StoreError {
    /// Creates an error for a store that cannot be reached or does not respond.
    pub fn unavailable(source: impl Into<Source>) -> Self {
        Self::new(Kind::Unavailable, source)
    }

    /// Creates an error for a store that another process uses. `source` should name that process
    /// and the remedy.
    pub fn locked(source: impl Into<Source>) -> Self {
        Self::new(Kind::Locked, source)
    }

    /// Creates an error for a store without space, on the disk or within its own limit.
    pub fn full(source: impl Into<Source>) -> Self {
        Self::new(Kind::Full, source)
    }

    /// Creates an error of any other kind.
    pub fn other(source: impl Into<Source>) -> Self {
        Self::new(Kind::Other, source)
    }

    fn new(kind: Kind, source: impl Into<Source>) -> Self {
        Self { kind, inner: source.into() }
    }

    /// Returns the error of the store, which is part of the [`Display`](fmt::Display) text.
    pub fn get_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.inner
    }

    /// Returns the text for clients, which names neither files nor servers.
    pub(crate) fn public_text(&self) -> &'static str {
        match self.kind {
            Kind::Unavailable => "the task store is unavailable",
            Kind::Locked => "the task store is in use",
            Kind::Full => "the task store is full",
            Kind::Other => "the task store failed",
        }
    }

    /// The error of operations after the store was closed.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn closed() -> Self {
        Self::unavailable("the store is closed: open it again")
    }

    /// Returns the same error for a store that cannot be reached.
    #[cfg(feature = "postgres")]
    pub(crate) fn into_unavailable(self) -> Self {
        Self { kind: Kind::Unavailable, ..self }
    }

    /// Returns the same error for another caller that waits for the same transaction. It has the
    /// text of the store's error, with its causes.
    pub(crate) fn duplicate(&self) -> Self {
        Self { kind: self.kind, inner: self.causes().into() }
    }

    /// Returns the text of the store's error, with its causes.
    pub(crate) fn causes(&self) -> String {
        with_causes(&*self.inner)
    }

    /// Returns the text of the error, with its causes.
    #[cfg(feature = "tracing")]
    pub(super) fn with_causes(&self) -> String {
        with_causes(self)
    }

    /// Returns `true` if the store cannot be reached. A later attempt may succeed.
    pub fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    /// Returns `true` if the store is for one process at a time and another one uses it.
    pub fn is_locked(&self) -> bool {
        self.kind == Kind::Locked
    }

    /// Returns `true` if the store has no space for another record.
    pub fn is_full(&self) -> bool {
        self.kind == Kind::Full
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // An error of sqlx repeats that of the database.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.public_text(), self.inner)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source()
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}
