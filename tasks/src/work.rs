//! Runs the work of a task and records how it ended.

use std::{panic::resume_unwind, sync::Arc};

use crate::{
    Failure, IntoTaskResult, Progress,
    panic::{Payload, catch_unwind, catch_unwind_future, panic_message},
    record::Ending,
    writer::ActiveTask,
};

/// Runs a closure, unless the task was cancelled before.
///
/// The background gets an error message or a panic, which it counts and reports.
pub(crate) fn run_blocking<F, O>(task: &Arc<ActiveTask>, work: F) -> Result<(), String>
where
    F: FnOnce(Progress) -> O,
    O: IntoTaskResult,
{
    if !task.start() {
        return Ok(());
    }
    let progress = Progress::new(task.clone());
    conclude(task, catch_unwind(|| ending(work(progress))))
}

/// Runs a future, like [`run_blocking`].
pub(crate) async fn run<F, A, O>(task: Arc<ActiveTask>, work: F) -> Result<(), String>
where
    F: FnOnce(Progress) -> A,
    A: Future<Output = O>,
    O: IntoTaskResult,
{
    if !task.start() {
        return Ok(());
    }
    let progress = Progress::new(task.clone());
    let ended = match catch_unwind(|| Box::pin(work(progress))) {
        Ok(future) => catch_unwind_future(future).await.and_then(|result| catch_unwind(|| ending(result))),
        Err(payload) => Err(payload),
    };
    conclude(&task, ended)
}

/// Converts the output of user code. Serializing, formatting and dropping it runs user code too.
pub(crate) fn ending(output: impl IntoTaskResult) -> Ending {
    output.into_task_result().map_or_else(Ending::Failed, Ending::Succeeded)
}

fn conclude(task: &ActiveTask, ended: Result<Ending, Payload>) -> Result<(), String> {
    match ended {
        Ok(ending) => {
            let result = match &ending {
                Ending::Failed(failure) => Err(failure.message.clone()),
                _ => Ok(()),
            };
            task.set_outcome(ending);
            result
        }
        Err(payload) => {
            task.set_outcome(Ending::Failed(Failure::new("panic", panic_message(&*payload))));
            resume_unwind(payload)
        }
    }
}
