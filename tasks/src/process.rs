use tower_offload::process::RunError;

use crate::{Failure, IntoFailure};

/// The failure of work that runs in a process, so that a task can use `?` on the result of a
/// [`ProcessPool`](tower_offload::process::ProcessPool).
///
/// An error of the work becomes what [`IntoFailure`] describes. Otherwise the class says how the
/// work ended:
///
/// | class | [`RunError`] |
/// |---|---|
/// | `refused` | `Rejected`, `NoProcess` |
/// | `panic` | `Panicked` |
/// | `timeout`, `memory`, `cancelled`, `crash` | `Killed`; the message has the signal of a crash |
/// | `exit` | `Exited`; the message has the exit status |
/// | `data` | `InvalidData` |
/// | `protocol` | `Protocol` |
/// | `unknown_kind` | `UnknownKind` |
#[cfg_attr(docsrs, doc(cfg(feature = "process")))]
impl<E: IntoFailure> From<RunError<E>> for Failure {
    fn from(error: RunError<E>) -> Self {
        let class = match error {
            RunError::Failed(error) => return error.into_failure(),
            // The location is not for clients. It is part of what the process writes to stderr.
            RunError::Panicked(panic) => return Self::new("panic", panic.message()),
            RunError::NoProcess(_) => return Self::new("refused", "no process could be started for the job"),
            RunError::Rejected(_) => "refused",
            // Reasons may have parts of the data, and what a process wrote to stderr.
            RunError::InvalidData(_) => {
                return Self::new("data", "the data of the job cannot be passed to its process");
            }
            RunError::Killed { by } => by.as_str(),
            RunError::Exited { .. } => "exit",
            RunError::Protocol => "protocol",
            RunError::UnknownKind(_) => "unknown_kind",
            _ => "error",
        };
        Self::new(class, error.map_failed(|_| String::new()).to_string())
    }
}
