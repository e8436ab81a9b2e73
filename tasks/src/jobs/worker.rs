use std::{any::Any, pin::Pin, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::Notify;
use tower_offload::{CallError, Pool};

use super::{Job, alive::Alive};
use crate::{
    Failure, IntoFailure, Progress,
    panic::{catch_unwind, catch_unwind_future, drop_payload, panic_message},
    record::Ending,
    work::ending,
};

/// Does the jobs of one kind.
pub(super) struct Worker<J> {
    start: Arc<dyn Fn(J, Progress, Option<Alive>) -> Work + Send + Sync>,
    /// How long one attempt may take, from when its work begins.
    pub(super) limit: Duration,
}

impl<J> Clone for Worker<J> {
    fn clone(&self) -> Self {
        Self { start: self.start.clone(), limit: self.limit }
    }
}

/// The work of one attempt. Its future ends when it has really ended.
pub(super) struct Work {
    pub(super) future: Pin<Box<dyn Future<Output = Result<Ending, CallError>> + Send>>,
    /// Notified once, when the work begins.
    pub(super) begun: Arc<Notify>,
    /// Dropped, it would go on where nobody sees it: so it never is.
    pub(super) is_sync: bool,
}

impl<J: Job> Worker<J> {
    pub(super) fn of_closure<P, F, T, E>(pool: P, limit: Duration, work: F) -> Self
    where
        P: Pool,
        F: Fn(J, Progress) -> Result<T, E> + Send + Sync + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let (pool, work) = (Arc::new(pool) as Arc<dyn Pool>, Arc::new(work));
        let start = move |job, progress: Progress, alive: Option<Alive>| {
            let (pool, work, begun) = (pool.clone(), work.clone(), Arc::new(Notify::new()));
            let begins = begun.clone();
            let closure = move || {
                let _alive = alive; // until the closure has ended, whoever waits for it
                if progress.is_cancelled() {
                    return Ending::TimedOut; // it never began, so nobody asks how it ended
                }
                begins.notify_one();
                settled(catch_unwind(|| ending(work(job, progress))))
            };
            Work { future: Box::pin(async move { pool.run(closure).await }), begun, is_sync: true }
        };
        Self { start: Arc::new(start), limit }
    }

    pub(super) fn of_future<F, A, T, E>(limit: Duration, work: F) -> Self
    where
        F: Fn(J, Progress) -> A + Send + Sync + 'static,
        A: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize,
        E: IntoFailure,
    {
        let work = Arc::new(work);
        let start = move |job, progress, alive: Option<Alive>| {
            let (work, begun) = (work.clone(), Arc::new(Notify::new()));
            begun.notify_one();
            let future = async move {
                let _alive = alive;
                Ok(settled(match catch_unwind(|| Box::pin(work(job, progress))) {
                    Ok(future) => catch_unwind_future(future).await.and_then(|result| catch_unwind(|| ending(result))),
                    Err(payload) => Err(payload),
                }))
            };
            Work { future: Box::pin(future), begun, is_sync: false }
        };
        Self { start: Arc::new(start), limit }
    }

    pub(super) fn start(&self, job: J, progress: Progress, alive: Option<Alive>) -> Work {
        (self.start)(job, progress, alive)
    }
}

fn settled(ended: Result<Ending, Box<dyn Any + Send>>) -> Ending {
    ended.unwrap_or_else(|payload| {
        let failure = Failure::new("panic", panic_message(&*payload));
        drop_payload(payload);
        Ending::Failed(failure)
    })
}
