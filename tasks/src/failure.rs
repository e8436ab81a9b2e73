use std::{any::type_name, borrow::Cow, error::Error, fmt::Display};

use serde::{Deserialize, Serialize};

use crate::{Json, text::sanitize};

/// Failure of a task: a class for programs and a message for people.
///
/// It does not implement [`Error`], so that a task can return either any error or a `Failure`. A
/// task that returns another error has the class that [`IntoFailure`] describes.
///
/// Clients that may read the status of the task see the failure, so a message should not name
/// files, servers or other internals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "The failure of a task: a class for programs and a message for people.")
)]
#[non_exhaustive]
pub struct Failure {
    /// The class of the failure: `panic`, `refused` (no thread could run the task), `result` (the
    /// result could not be stored), `error`, a class of work in a process (such as `timeout`), or a
    /// name that the application chose.
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
                // A long message is shortened, so that the note is not cut off.
                let note = sanitize(format!(" (details omitted: {error})"), MAX_NOTE_BYTES);
                self.message = sanitize(self.message, MAX_MESSAGE_BYTES - note.len()) + &note;
            }
        }
        self
    }
}

const MAX_CLASS_BYTES: usize = 200;
const MAX_MESSAGE_BYTES: usize = 8 * 1024;
/// Maximum size of the note that details were omitted. It is a part of the message.
const MAX_NOTE_BYTES: usize = 1024;

/// Error types of tasks: every type that implements [`Display`], and [`Failure`].
///
/// The message is the alternate form (`{:#}`), which includes the causes for error types such as
/// `anyhow::Error`. The class is the name of the type, or `error` for strings and `Box<dyn Error>`.
/// A [`Failure`] has a class of its own.
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Failure, MAX_MESSAGE_BYTES};

    #[test]
    fn note_about_omitted_details_ends_a_message_of_any_length() {
        let without_json_form = HashMap::from([((1, 2), 3)]);
        for length in [0, 10, MAX_MESSAGE_BYTES - 1, MAX_MESSAGE_BYTES, 10 * MAX_MESSAGE_BYTES] {
            let failure = Failure::new("class", "\u{e9}".repeat(length)).detail(&without_json_form);
            assert!(failure.message.len() <= MAX_MESSAGE_BYTES, "{length}");
            let end = "(details omitted: the value cannot be represented in JSON: key must be a string)";
            assert!(failure.message.ends_with(end), "{length}: {}", &failure.message[failure.message.len() - 99..]);
        }
        let too_large = Failure::new("class", "x".repeat(MAX_MESSAGE_BYTES)).detail(&"x".repeat(100_000));
        assert!(too_large.message.ends_with("(details omitted: the JSON text exceeds 65536 bytes)"));
    }
}
