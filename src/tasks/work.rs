use std::{any::Any, future::poll_fn, panic::resume_unwind, sync::Arc, task::Poll};

use serde::Serialize;

use super::{Failure, IntoFailure, Json, Progress, live::Live, record::Ending};
use crate::{
    background::Body,
    pool::call::{guarded, panic_text},
};

/// The work of a tracked task, as the background runs it: it says when it begins and how it ends.
pub(super) fn of_closure<F, T, E>(live: Arc<Live>, work: F) -> Body
where
    F: FnOnce(Progress) -> Result<T, E> + Send + 'static,
    T: Serialize,
    E: IntoFailure,
{
    Body::of_closure(move || {
        if !live.begin() {
            return Ok(());
        }
        let progress = Progress::new(live.clone());
        conclude(&live, guarded(|| ending(work(progress))))
    })
}

pub(super) fn of_future<F, A, T, E>(live: Arc<Live>, work: F) -> Body
where
    F: FnOnce(Progress) -> A + Send + 'static,
    A: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize,
    E: IntoFailure,
{
    Body::of_future(async move {
        if !live.begin() {
            return Ok(());
        }
        let progress = Progress::new(live.clone());
        let mut future = match guarded(|| Box::pin(work(progress))) {
            Ok(future) => future,
            Err(payload) => return conclude(&live, Err(payload)),
        };
        let polled = poll_fn(|cx| match guarded(|| future.as_mut().poll(cx).map(ending)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(ending)) => Poll::Ready(Ok(ending)),
            Err(payload) => Poll::Ready(Err(payload)),
        });
        let ended = polled.await;
        let dropped = guarded(|| drop(future));
        conclude(&live, ended.and_then(|ending| dropped.map(|()| ending)))
    })
}

/// What the work returned; all of this is foreign code: how it is serialised, shown and dropped.
fn ending<T: Serialize, E: IntoFailure>(result: Result<T, E>) -> Ending {
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
