//! Workers, and the attempts that they make.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::Notify, time::sleep};
use tower_offload::{CallError, Pool};

use super::{Job, progress::ProgressBuffer, running::RunningJob};
use crate::{
    Failure, IntoFailure, Json, Progress, TaskId,
    panic::{Payload, catch_unwind, catch_unwind_future, drop_payload, ignore_panic, panic_message},
    progress::ProgressSink,
    record::Ending,
    work::ending,
};

/// Runs the jobs of one kind.
pub(super) struct Worker<J> {
    start: Arc<StartWork<J>>,
    /// Maximum time of an attempt, measured from the start of its work.
    pub(super) timeout: Duration,
}

type StartWork<J> = dyn Fn(J, Progress, Option<RunningJob>) -> Work + Send + Sync;

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Self { start: self.start.clone(), timeout: self.timeout }
    }
}

/// The work of one attempt.
pub(super) struct Work {
    /// Completes after the work has ended, even if it is a closure whose attempt was stopped.
    pub(super) future: Pin<Box<dyn Future<Output = Result<Ending, CallError>> + Send>>,
    /// Notified once, when the work starts.
    started: Arc<Notify>,
    /// `true` if the work is a closure. Its future must not be dropped before it completes, because
    /// the closure would continue unobserved.
    is_blocking: bool,
}

impl<J: Job> Worker<J> {
    pub(super) fn blocking<P, F, T, E>(pool: P, timeout: Duration, work: F) -> Self
    where
        P: Pool,
        F: Fn(J, Progress) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let (pool, work) = (Arc::new(pool) as Arc<dyn Pool>, Arc::new(work));
        let start = move |job, progress: Progress, running: Option<RunningJob>| {
            let (pool, work, started) = (pool.clone(), work.clone(), Arc::new(Notify::new()));
            let starts = started.clone();
            let closure = move || {
                let _running = running; // until the closure returns, even if its caller was dropped
                if progress.is_cancelled() {
                    return Ending::TimedOut; // not used, since the attempt was stopped
                }
                starts.notify_one();
                panic_to_failure(catch_unwind(|| ending(work(job, progress))))
            };
            Work { future: Box::pin(async move { pool.run(closure).await }), started, is_blocking: true }
        };
        Self { start: Arc::new(start), timeout }
    }

    pub(super) fn future<F, A, T, E>(timeout: Duration, work: F) -> Self
    where
        F: Fn(J, Progress) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let work = Arc::new(work);
        let start = move |job, progress, running: Option<RunningJob>| {
            let (work, started) = (work.clone(), Arc::new(Notify::new()));
            started.notify_one();
            let future = async move {
                let _running = running;
                Ok(panic_to_failure(match catch_unwind(|| Box::pin(work(job, progress))) {
                    Ok(future) => catch_unwind_future(future).await.and_then(|result| catch_unwind(|| ending(result))),
                    Err(payload) => Err(payload),
                }))
            };
            Work { future: Box::pin(future), started, is_blocking: false }
        };
        Self { start: Arc::new(start), timeout }
    }

    pub(super) fn start(&self, job: J, progress: Progress, running: Option<RunningJob>) -> Work {
        (self.start)(job, progress, running)
    }
}

fn panic_to_failure(ended: Result<Ending, Payload>) -> Ending {
    ended.unwrap_or_else(|payload| {
        let failure = Failure::new("panic", panic_message(&*payload));
        drop_payload(payload);
        Ending::Failed(failure)
    })
}

/// One attempt of a job.
pub(super) struct Attempt {
    pub(super) id: TaskId,
    is_cancelled: AtomicBool,
    buffer: Arc<ProgressBuffer>,
    /// Key of the attempt in the buffer.
    pub(super) progress_key: u64,
}

/// Result of an attempt.
#[derive(Debug, PartialEq)]
pub(super) enum AttemptResult {
    /// The pool did not run the work.
    NotRun(CallError),
    /// The attempt was cancelled, or the process is shutting down.
    Stopped,
    Failed(Failure),
    Succeeded(Json),
}

impl Attempt {
    pub(super) fn new(id: TaskId, number: i64, buffer: Arc<ProgressBuffer>) -> Self {
        let progress_key = buffer.add(id, number);
        Self { id, is_cancelled: AtomicBool::new(false), buffer, progress_key }
    }

    /// Runs the work until it has ended. `stop` completes when River stops the attempt.
    ///
    /// On a timeout or a stop, a future is dropped. A closure cannot be stopped, so this function
    /// waits for it, and River starts no other attempt in the meantime.
    pub(super) async fn run(&self, work: Work, timeout: Duration, stop: impl Future<Output = ()>) -> AttemptResult {
        let Work { mut future, started, is_blocking } = work;
        let mut timed_out = pin!(async {
            started.notified().await;
            sleep(timeout).await;
        });
        let mut stop = pin!(stop);
        let (mut is_late, mut is_stopped) = (false, false);
        loop {
            tokio::select! {
                biased;
                ended = &mut future => return result(ended, timeout, is_late, is_stopped),
                () = &mut stop, if !is_stopped => is_stopped = true,
                () = &mut timed_out, if !is_late => is_late = true,
            }
            self.is_cancelled.store(true, Ordering::Release);
            if !is_blocking {
                ignore_panic(|| drop(future));
                return if is_stopped {
                    AttemptResult::Stopped
                } else {
                    AttemptResult::Failed(timeout_failure(timeout))
                };
            }
        }
    }
}

fn result(ended: Result<Ending, CallError>, timeout: Duration, is_late: bool, is_stopped: bool) -> AttemptResult {
    match ended {
        Ok(_) if is_late => AttemptResult::Failed(timeout_failure(timeout)),
        // If a closure succeeds despite the stop, the attempt has succeeded.
        Ok(Ending::Succeeded(result)) => AttemptResult::Succeeded(result),
        _ if is_stopped => AttemptResult::Stopped,
        Ok(Ending::Failed(failure)) => AttemptResult::Failed(failure),
        Ok(_) => AttemptResult::Stopped,
        Err(error) => AttemptResult::NotRun(error),
    }
}

/// Class of the failure of an attempt that timed out. The triggers give a job the state `timed_out`
/// if its last attempt failed with this class.
const TIMEOUT_CLASS: &str = "timeout";

fn timeout_failure(timeout: Duration) -> Failure {
    Failure::new(TIMEOUT_CLASS, format!("the attempt exceeded its timeout of {timeout:?}"))
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.buffer.remove(self.progress_key);
    }
}

impl ProgressSink for Attempt {
    fn id(&self) -> TaskId {
        self.id
    }

    fn advance(&self, progress: Option<f64>, message: Option<String>) {
        self.buffer.advance(self.progress_key, progress, message);
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }
}
