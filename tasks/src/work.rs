use std::{any::Any, panic::resume_unwind, sync::Arc};

use serde::Serialize;

use super::{Failure, IntoFailure, Json, Progress, live::Live, record::Ending};
use crate::panic::{caught, guarded, panic_text};

/// The work of a tracked task, as the background runs it: it says when it begins and how it ends.
pub(super) fn of_closure<F, T, E>(live: Arc<Live>, work: F) -> impl FnOnce() -> Result<(), String> + Send + 'static
where
    F: FnOnce(Progress) -> Result<T, E> + Send + 'static,
    T: Serialize,
    E: IntoFailure,
{
    move || {
        if !live.begin() {
            return Ok(());
        }
        let progress = Progress::new(live.clone());
        conclude(&live, guarded(|| ending(work(progress))))
    }
}

#[expect(clippy::manual_async_fn, reason = "the future of an `async fn` is only `'static` if `T` and `E` are")]
pub(super) fn of_future<F, A, T, E>(
    live: Arc<Live>,
    work: F,
) -> impl Future<Output = Result<(), String>> + Send + 'static
where
    F: FnOnce(Progress) -> A + Send + 'static,
    A: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize,
    E: IntoFailure,
{
    async move {
        if !live.begin() {
            return Ok(());
        }
        let progress = Progress::new(live.clone());
        let ended = match guarded(|| Box::pin(work(progress))) {
            Ok(future) => caught(future).await.and_then(|result| guarded(|| ending(result))),
            Err(payload) => Err(payload),
        };
        conclude(&live, ended)
    }
}

/// What the work returned; all of this is foreign code: how it is serialised, shown and dropped.
pub(crate) fn ending<T: Serialize, E: IntoFailure>(result: Result<T, E>) -> Ending {
    match result {
        Ok(value) => match Json::new(&value) {
            Ok(result) => Ending::Succeeded(result),
            Err(error) => {
                Ending::Failed(Failure::new("result", format!("what the task returned is not kept: {error}")))
            }
        },
        Err(error) => Ending::Failed(error.into_failure()),
    }
}

/// Notes it, and hands it on to the background, which counts and reports it.
fn conclude(live: &Live, ended: Result<Ending, Box<dyn Any + Send>>) -> Result<(), String> {
    match ended {
        Ok(ending) => {
            let message = match &ending {
                Ending::Failed(failure) => Err(failure.message.clone()),
                _ => Ok(()),
            };
            live.conclude(ending);
            message
        }
        Err(payload) => {
            live.conclude(Ending::Failed(Failure::new("panic", panic_text(&*payload))));
            resume_unwind(payload)
        }
    }
}
