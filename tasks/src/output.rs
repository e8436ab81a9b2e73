use serde::Serialize;

use crate::{Failure, IntoFailure, Json};

/// Output of a task: `()`, or a `Result` with a serializable value and an [error](IntoFailure).
///
/// ```
/// use std::convert::Infallible;
/// use tower_offload::Background;
/// use tower_offload_tasks::{MemoryStore, Tasks};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), tower_offload_tasks::AcceptError> {
/// let (tasks, background) = (Tasks::new(MemoryStore::new()), Background::default());
/// let _ = tasks.track("index").spawn_blocking(&background, |_| { /* work */ }).await?;
/// // The type of the error is needed, even if the work cannot fail.
/// let _ = tasks.track("count").spawn_blocking(&background, |_| Ok::<_, Infallible>(3)).await?;
/// let read = |_| std::fs::read_to_string("file");
/// let _ = tasks.track("read").spawn_blocking(&background, read).await?;
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a task returns `()` or `Result<T, E>` where `T: Serialize` and `E: Display`, not `{Self}`",
    note = "work that cannot fail returns its value as `Ok::<_, std::convert::Infallible>(value)`"
)]
pub trait IntoTaskResult: sealed::Sealed {
    #[doc(hidden)]
    fn into_task_result(self) -> Result<Json, Failure>;
}

impl IntoTaskResult for () {
    fn into_task_result(self) -> Result<Json, Failure> {
        serialize(&self)
    }
}

impl<T: Serialize, E: IntoFailure> IntoTaskResult for Result<T, E> {
    fn into_task_result(self) -> Result<Json, Failure> {
        self.map_err(IntoFailure::into_failure).and_then(|value| serialize(&value))
    }
}

fn serialize(value: &impl Serialize) -> Result<Json, Failure> {
    Json::new(value).map_err(|error| Failure::new("result", format!("the result cannot be stored: {error}")))
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl<T, E> Sealed for Result<T, E> {}
}
