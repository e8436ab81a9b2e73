use std::fmt;

/// What a task may return: nothing, or whether it failed.
///
/// The error's alternate form (`{:#}`) goes into the [`TaskFailure`](super::TaskFailure); libraries of error reports
/// show the whole chain of causes with it.
#[diagnostic::on_unimplemented(
    message = "a task returns `()` or `Result<(), E>` where `E: Display`, and not `{Self}`",
    note = "end it with `;`, or map what it returns: `.map(drop)`"
)]
pub trait TaskOutput: sealed::Sealed {
    #[doc(hidden)]
    fn into_message(self) -> Result<(), String>;
}

impl TaskOutput for () {
    fn into_message(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> TaskOutput for Result<(), E> {
    fn into_message(self) -> Result<(), String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl<E> Sealed for Result<(), E> {}
}
