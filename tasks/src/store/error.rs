use std::{error::Error, fmt};

/// Why a store did not do what it was asked to.
#[derive(Debug)]
pub struct StoreError {
    kind: Kind,
    source: Option<Source>,
}

type Source = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Locked,
    Other,
    Unavailable,
}

impl StoreError {
    /// There is no room: a full disk, a bound that is reached.
    pub fn full(source: impl Into<Source>) -> Self {
        Self::new(Kind::Full, source)
    }

    /// Another process has the store; `source` should name it.
    pub fn locked(source: impl Into<Source>) -> Self {
        Self::new(Kind::Locked, source)
    }

    /// It cannot be reached, or did not answer; later it may.
    pub fn unavailable(source: impl Into<Source>) -> Self {
        Self::new(Kind::Unavailable, source)
    }

    /// Anything else.
    pub fn other(source: impl Into<Source>) -> Self {
        Self::new(Kind::Other, source)
    }

    fn new(kind: Kind, source: impl Into<Source>) -> Self {
        Self { kind, source: Some(source.into()) }
    }

    /// The same once more, for all that wait for one transaction; of the source the text.
    pub(crate) fn again(&self) -> Self {
        Self { kind: self.kind, source: self.source.as_ref().map(|source| causes(&**source).into()) }
    }

    /// For whoever runs the process, with all the causes, which clients are not told. Nothing without feature `tracing`.
    pub(crate) fn report(&self) {
        #[cfg(feature = "tracing")]
        tracing::event!(tracing::Level::ERROR, "{}", causes(self));
    }

    /// `true` if there is no room in it.
    pub fn is_full(&self) -> bool {
        self.kind == Kind::Full
    }

    /// `true` if it is for one process at a time, and another one has it.
    pub fn is_locked(&self) -> bool {
        self.kind == Kind::Locked
    }

    /// `true` if it could not be reached.
    pub fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }
}

fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Full => "the store of tasks is full",
            Kind::Locked => "another process has the store of tasks",
            Kind::Other => "the store of tasks failed",
            Kind::Unavailable => "the store of tasks does not answer",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
