use std::{borrow::Cow, error::Error, fmt, io, path::PathBuf, sync::Arc};

use crate::CallError;

/// Reason why a job has no output. `E` is the error of its [`Work`](super::Work).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError<E> {
    /// The job did not start, or its caller was answered at the [deadline](crate::pool#deadlines).
    Rejected(CallError),
    /// No process could be started to run the job.
    NoProcess(StartError),
    /// The kind of the work is not among those that the program passes to
    /// [`init`](super::init).
    UnknownKind(&'static str),
    /// Input or result of the job could not be encoded, could not be decoded, or is too large.
    InvalidData(DataError),
    /// The work returned an error.
    Failed(E),
    /// The work panicked. Its process continues, unless it aborts on panics.
    Panicked(WorkPanic),
    /// The process was killed: by the pool, or it crashed.
    Killed {
        /// The reason.
        by: KilledBy,
    },
    /// The process exited before the job ended, because the work called `exit`.
    Exited {
        /// Exit status of the process. `None` if something other than the pool has reaped it, such
        /// as a thread of the program that waits for all of its children.
        code: Option<i32>,
    },
    /// The process broke the protocol: it closed its socket, or something else wrote to it. It was
    /// killed.
    Protocol,
}

/// Reason why a process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KilledBy {
    /// The job ran for longer than its [timeout](super::Run::timeout).
    Timeout,
    /// The process used more than [`max_memory`](super::ProcessPoolBuilder::max_memory).
    Memory,
    /// The caller left, or the timeout of the pool's shutdown passed.
    Cancelled,
    /// A signal that the pool did not send: the number of the signal, such as 11 for an invalid
    /// memory access (`SIGSEGV`), 6 for an abort (`SIGABRT`), and 9 (`SIGKILL`) if the system ran
    /// out of memory or another program killed the process.
    Crash(i32),
}

impl KilledBy {
    /// Returns a short machine-readable name: `"timeout"`, `"memory"`, `"cancelled"` or `"crash"`.
    /// Metrics and events use it as `by`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Cancelled => "cancelled",
            Self::Crash(_) => "crash",
        }
    }
}

/// A panic of work in its process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkPanic {
    pub(super) message: String,
    pub(super) location: String,
}

impl WorkPanic {
    /// Returns the message, at most 4 KiB of it.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the place in the source: file, line and column.
    pub fn location(&self) -> &str {
        &self.location
    }
}

impl fmt::Display for WorkPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, location } = self;
        write!(f, "the work panicked at {location}: {message}")
    }
}

/// Input or result of a job that cannot be passed between processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataError(pub(super) DataErrorKind);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DataErrorKind {
    TooLarge { what: &'static str, len: u64, max: usize },
    Encoding { what: &'static str, reason: String },
}

impl DataError {
    pub(super) fn too_large(what: &'static str, len: u64, max: usize) -> Self {
        Self(DataErrorKind::TooLarge { what, len, max })
    }

    pub(super) fn encoding(what: &'static str, reason: impl fmt::Display) -> Self {
        Self(DataErrorKind::Encoding { what, reason: reason.to_string() })
    }

    /// Returns `true` if input or result is longer than
    /// [`max_frame_size`](super::ProcessPoolBuilder::max_frame_size).
    pub fn is_too_large(&self) -> bool {
        matches!(self.0, DataErrorKind::TooLarge { .. })
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            DataErrorKind::TooLarge { what, len, max } => {
                write!(f, "the {what} of the job has {len} bytes, the limit is {max}: see `max_frame_size`")
            }
            DataErrorKind::Encoding { what, reason } => {
                write!(f, "the {what} of the job cannot be encoded or decoded: {reason}")
            }
        }
    }
}

impl Error for DataError {}

impl<E> RunError<E> {
    /// Returns `true` if the job has not run and another attempt may succeed: the queue is full, or
    /// no process could be started.
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Rejected(CallError::Overloaded | CallError::KeyLimited) | Self::NoProcess(_))
    }

    /// Converts the error of the work.
    pub fn map_failed<F>(self, convert: impl FnOnce(E) -> F) -> RunError<F> {
        match self {
            Self::Failed(error) => RunError::Failed(convert(error)),
            Self::Rejected(error) => RunError::Rejected(error),
            Self::NoProcess(error) => RunError::NoProcess(error),
            Self::UnknownKind(kind) => RunError::UnknownKind(kind),
            Self::InvalidData(error) => RunError::InvalidData(error),
            Self::Panicked(panic) => RunError::Panicked(panic),
            Self::Killed { by } => RunError::Killed { by },
            Self::Exited { code } => RunError::Exited { code },
            Self::Protocol => RunError::Protocol,
        }
    }

    /// Returns why the process of the job was killed, if it was.
    pub fn killed_by(&self) -> Option<KilledBy> {
        if let Self::Killed { by } = self { Some(*by) } else { None }
    }
}

/// The text includes the error of the work and all other reasons, also what a process has written
/// to stderr before it was ready. It is for the operator, not for clients.
/// [`source`](Error::source) returns none; the causes of an error of the work are those of its
/// value.
impl<E: fmt::Display> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(error) => write!(f, "{error}"),
            Self::NoProcess(error) => write!(f, "no process could be started for the job: {error}"),
            Self::UnknownKind(kind) => write!(
                f,
                "work of kind `{kind}` is not passed to `tower_offload::process::init`: pass the types of all work to the \
                 first call of `init`, as a tuple"
            ),
            Self::InvalidData(error) => write!(f, "{error}"),
            Self::Failed(error) => write!(f, "{error}"),
            Self::Panicked(panic) => write!(f, "{panic}"),
            Self::Killed { by: KilledBy::Timeout } => f.write_str("the process was killed at the timeout of the job"),
            Self::Killed { by: KilledBy::Memory } => {
                f.write_str("the process was killed because it used too much memory")
            }
            Self::Killed { by: KilledBy::Cancelled } => {
                f.write_str("the process was killed because the job was cancelled")
            }
            Self::Killed { by: KilledBy::Crash(signal) } => write!(f, "the process was killed by signal {signal}"),
            Self::Exited { code: Some(code) } => {
                write!(f, "the process exited with status {code} before the job ended")
            }
            Self::Exited { code: None } => {
                f.write_str("the process exited before the job ended, and its status is unknown")
            }
            Self::Protocol => f.write_str("the process broke the protocol of the pool and was killed"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> Error for RunError<E> {}

/// Reason why a process could not be started.
#[derive(Clone)]
pub struct StartError(pub(super) Arc<StartErrorKind>);

#[derive(Debug)]
pub(super) enum StartErrorKind {
    Spawn(io::Error),
    /// The file of the program.
    Executable(PathBuf, io::Error),
    /// The process ended before it was ready. With the end of what it wrote to stderr.
    Ended {
        status: String,
        stderr: String,
        /// `true` if it ended in `init`.
        is_setup: bool,
    },
    /// It was not ready in time.
    Silent,
    NotInitialized,
    OtherExecutable,
    Protocol,
}

impl StartError {
    pub(super) fn new(kind: StartErrorKind) -> Self {
        Self(Arc::new(kind))
    }

    /// Returns `true` if the program has not called [`init`](super::init).
    pub fn is_not_initialized(&self) -> bool {
        matches!(*self.0, StartErrorKind::NotInitialized)
    }

    /// Returns `true` if the file of the program was replaced while the pool was in use.
    pub fn is_other_executable(&self) -> bool {
        matches!(*self.0, StartErrorKind::OtherExecutable)
    }
}

impl PartialEq for StartError {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for StartError {}

/// The two lines that a program needs.
const REMEDY: &str = "make `tower_offload::process::init::<MyWork>();` the first line of `main`, \
                      before the program does anything else";

/// Prints the message, because a `main` that returns the error prints it in this form.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartError({:?})", self.to_string())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            StartErrorKind::Spawn(error) => write!(f, "the system cannot start a process: {error}"),
            StartErrorKind::Executable(path, error) => {
                write!(f, "the program {path:?} cannot be read: {error}")?;
                if path.starts_with("/proc") { f.write_str("; `/proc` must be mounted") } else { Ok(()) }
            }
            StartErrorKind::Ended { status, stderr, is_setup: true } => write!(
                f,
                "the process was not ready ({status}), because `setup` of `init_with` has panicked or the process could not be set \
                 up, with `{stderr}` on stderr"
            ),
            StartErrorKind::Ended { status, stderr, .. } if stderr.is_empty() => {
                write!(f, "the process ended before it was ready ({status}): {REMEDY}")
            }
            StartErrorKind::Ended { status, stderr, .. } => {
                write!(f, "the process ended before it was ready ({status}), with `{stderr}` on stderr: {REMEDY}")
            }
            StartErrorKind::Silent => {
                write!(f, "the process was not ready in time: {REMEDY}, or raise `start_timeout`")
            }
            StartErrorKind::NotInitialized => write!(f, "`init` was not called: {REMEDY}"),
            StartErrorKind::OtherExecutable => {
                f.write_str("the file of the program was replaced since the pool was built: restart the program")
            }
            StartErrorKind::Protocol => f.write_str("the process did not speak the protocol of the pool"),
        }
    }
}

impl Error for StartError {}

/// Error of [`ProcessPoolBuilder::build`](super::ProcessPoolBuilder::build).
pub struct ProcessPoolBuildError(pub(super) BuildErrorKind);

pub(super) enum BuildErrorKind {
    Configuration(Cow<'static, str>),
    Start(StartError),
    Threads(Box<dyn Error + Send + Sync>),
}

impl ProcessPoolBuildError {
    /// Returns `true` if the builder has an invalid value, which the message names.
    pub fn is_configuration(&self) -> bool {
        matches!(self.0, BuildErrorKind::Configuration(_))
    }

    /// Returns `true` if the program has not called [`init`](super::init).
    pub fn is_not_initialized(&self) -> bool {
        matches!(&self.0, BuildErrorKind::Start(error) if error.is_not_initialized())
    }

    /// Returns `true` if threads or processes could not be started.
    pub fn is_spawn(&self) -> bool {
        !self.is_configuration() && !self.is_not_initialized()
    }
}

/// Prints the message, because a `main` that returns the error prints it in this form.
impl fmt::Debug for ProcessPoolBuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProcessPoolBuildError({:?})", self.to_string())
    }
}

impl fmt::Display for ProcessPoolBuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            BuildErrorKind::Configuration(message) => f.write_str(message),
            BuildErrorKind::Start(error) => write!(f, "cannot build the process pool: {error}"),
            BuildErrorKind::Threads(error) => write!(f, "cannot start the threads of the process pool: {error}"),
        }
    }
}

impl Error for ProcessPoolBuildError {}
