use std::{borrow::Cow, error::Error, fmt, io};

/// Error of [`SupervisorBuilder::run`](super::SupervisorBuilder::run).
#[derive(Debug)]
pub struct SupervisorError(pub(super) ErrorKind);

#[derive(Debug)]
pub(super) enum ErrorKind {
    Configuration(Cow<'static, str>),
    Listen(io::Error),
    /// A worker was not ready when the supervisor started.
    Start(String),
    System(io::Error),
}

impl SupervisorError {
    pub(super) fn configuration(message: &'static str) -> Self {
        Self(ErrorKind::Configuration(message.into()))
    }

    /// Returns `true` if the builder has an invalid value, which the message names.
    pub fn is_configuration(&self) -> bool {
        matches!(self.0, ErrorKind::Configuration(_))
    }

    /// Returns `true` if a socket could not be bound, for example because the port is in use.
    pub fn is_listen(&self) -> bool {
        matches!(self.0, ErrorKind::Listen(_))
    }

    /// Returns `true` if a worker was not ready when the supervisor started. The message says which
    /// one and how it ended.
    pub fn is_start(&self) -> bool {
        matches!(self.0, ErrorKind::Start(_))
    }
}

impl fmt::Display for SupervisorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            ErrorKind::Configuration(message) => f.write_str(message),
            ErrorKind::Listen(_) => f.write_str("cannot bind the socket of the workers"),
            ErrorKind::Start(reason) => write!(f, "cannot start the workers: {reason}"),
            ErrorKind::System(_) => f.write_str("the system cannot set up the supervisor"),
        }
    }
}

impl Error for SupervisorError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            ErrorKind::Listen(error) | ErrorKind::System(error) => Some(error),
            ErrorKind::Configuration(_) | ErrorKind::Start(_) => None,
        }
    }
}
