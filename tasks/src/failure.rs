use std::{any::type_name, borrow::Cow, error::Error, fmt::Display};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Json, text::clean};

/// How a task failed: a class for programs, a message for people.
///
/// Not an error itself, so that a task may return either any error or one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct Failure {
    /// What kind of failure it is. For an error the name of its type, as the compiler has it, and `error` for a text or a `Box<dyn Error>`,
    /// whose types say nothing; `panic` for a panic; `refused` if the
    /// pool did not run it; `result` if what it returned cannot be kept.
    pub class: String,
    /// What went wrong.
    pub message: String,
    /// More, of a type that the class tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Json>,
}

impl Failure {
    /// Of that class, with that message. Of the class 200 bytes are kept, of the message 8 KiB.
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        Self { class: clean(class, MAX_CLASS), message: clean(message, MAX_MESSAGE), detail: None }
    }

    /// With a value that says more. One that cannot be [kept](Json::new) is left out, and the message says so.
    pub fn detail(mut self, detail: &impl Serialize) -> Self {
        match Json::new(detail) {
            Ok(detail) => self.detail = Some(detail),
            Err(error) => self.message = clean(format!("{} (without its detail: {error})", self.message), MAX_MESSAGE),
        }
        self
    }
}

const MAX_CLASS: usize = 200;
const MAX_MESSAGE: usize = 8 * 1024;

/// What a task's error may be: any that can be shown, or a [`Failure`], which names its class itself.
///
/// Of an error the alternate form (`{:#}`) is the message, with which libraries of error reports show the whole chain of causes; a
/// backtrace only if the error itself shows it there.
pub trait IntoFailure: sealed::Sealed {
    #[doc(hidden)]
    fn into_failure(self) -> Failure;
}

impl<E: Display> IntoFailure for E {
    fn into_failure(self) -> Failure {
        Failure::new(class_of::<E>(), format!("{self:#}"))
    }
}

fn class_of<E>() -> &'static str {
    let class = type_name::<E>();
    let says_nothing = [
        type_name::<&str>(),
        type_name::<Box<dyn Error + Send + Sync>>(),
        type_name::<Box<dyn Error + Send>>(),
        type_name::<Box<dyn Error>>(),
        type_name::<Box<str>>(),
        type_name::<Cow<'_, str>>(),
        type_name::<String>(),
    ];
    if says_nothing.contains(&class) { "error" } else { class }
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
