use std::{any::type_name, borrow::Cow, error::Error, fmt::Display};

use serde::{Deserialize, Serialize};

use crate::{Json, text::sanitize};

/// Failure of a task: a class for programs and a message for people.
///
/// It does not implement [`Error`], so that a task can return either any error or a `Failure`. A
/// task that returns another error has the class that [`IntoFailure`] describes.
///
/// Clients that may read the status of the task see the failure, so a message should not name files,
/// servers or other internals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The failure of a task: a class for programs and a message for people.")
)]
#[non_exhaustive]
pub struct Failure {
    /// The class of the failure: `panic`, `refused` (no thread could run the task), `result` (the
    /// result could not be stored), `error`, or a name that the application chose.
    pub class: String,
    /// The error message of the application.
    pub message: String,
    /// Further details, in a form that depends on the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Json>,
}

impl Failure {
    /// Creates a failure. The class is truncated to 200 bytes and the message to 8 KiB.
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        let (class, message) = (sanitize(class, MAX_CLASS_BYTES), sanitize(message, MAX_MESSAGE_BYTES));
        Self { class, message, detail: None }
    }

    /// Adds details. If the value is not accepted by [`Json::new`], the message says so instead.
    #[must_use]
    pub fn detail(mut self, detail: &impl Serialize) -> Self {
        match Json::new(detail) {
            Ok(detail) => self.detail = Some(detail),
            Err(error) => {
                self.message = sanitize(format!("{} (details omitted: {error})", self.message), MAX_MESSAGE_BYTES);
            }
        }
        self
    }
}

const MAX_CLASS_BYTES: usize = 200;
const MAX_MESSAGE_BYTES: usize = 8 * 1024;

/// Error types of tasks: every type that implements [`Display`], and [`Failure`].
///
/// The message is the alternate form (`{:#}`), which includes the causes for error types such as
/// `anyhow::Error`. The class is the name of the type, or `error` for strings and `Box<dyn Error>`. A
/// [`Failure`] has a class of its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a task",
    note = "the error of a task implements `Display`, or is a `tower_offload_tasks::Failure`"
)]
pub trait IntoFailure: sealed::Sealed {
    #[doc(hidden)]
    fn into_failure(self) -> Failure;
}

impl<E: Display> IntoFailure for E {
    fn into_failure(self) -> Failure {
        Failure::new(class_of::<E>(), format!("{self:#}"))
    }
}

/// Returns the class of an error of type `E`: the name of the type, or `error` for types whose name
/// says nothing about the failure.
fn class_of<E>() -> &'static str {
    let class = type_name::<E>();
    let general = [
        type_name::<&str>(),
        type_name::<Box<dyn Error + Send + Sync>>(),
        type_name::<Box<dyn Error + Send>>(),
        type_name::<Box<dyn Error>>(),
        type_name::<Box<str>>(),
        type_name::<Cow<'_, str>>(),
        type_name::<String>(),
    ];
    if general.contains(&class) { "error" } else { class }
}

impl IntoFailure for Failure {
    fn into_failure(self) -> Failure {
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl<E: std::fmt::Display> Sealed for E {}
    impl Sealed for super::Failure {}
}
