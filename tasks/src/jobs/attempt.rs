use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

use super::{clerk::Clerk, worker::Work};
use tower_offload::CallError;

use crate::{
    Failure, Json, Record, TaskId, Timestamp,
    panic::ignore_panic,
    progress::ProgressSink,
    record::Ending,
    sync::{Mutex, lock},
};

/// One run of a job: what it says of itself, and whether it should stop.
pub(super) struct Attempt {
    id: TaskId,
    number: i64,
    /// Only its progress and its message are looked at.
    told: Mutex<Record>,
    unwanted: AtomicBool,
    clerk: Arc<Clerk>,
}

/// How it ended, for River.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Failed(Failure),
    /// The pool did not take it; it never began.
    NotRun(CallError),
    /// Somebody asked to cancel it, or the process stops, and it did.
    Stopped,
    Succeeded(Json),
}

impl Attempt {
    pub(super) fn new(id: TaskId, number: i64, clerk: Arc<Clerk>) -> Self {
        let mut told = Record::new(id, "", Timestamp::default());
        told.start(Timestamp::default());
        Self { id, number, told: Mutex::new(told), unwanted: AtomicBool::new(false), clerk }
    }

    pub(super) fn number(&self) -> i64 {
        self.number
    }

    /// The newest that it said.
    pub(super) fn told(&self) -> (Option<f64>, Option<String>) {
        let told = lock(&self.told);
        (told.progress, told.message.clone())
    }

    /// Runs the work to its real end, whatever happens meanwhile; only async work is dropped. `stop` ends when River wants it to stop.
    ///
    /// A sync closure cannot be ended: it is told, and as long as it goes on this goes on, so no other attempt begins.
    pub(super) async fn run(&self, work: Work, limit: Duration, stop: impl Future<Output = ()>) -> Verdict {
        let Work { mut future, begun, is_sync } = work;
        let mut late = pin!(async {
            begun.notified().await;
            sleep(limit).await;
        });
        let mut stop = pin!(stop);
        let (mut is_late, mut is_stopped) = (false, false);
        loop {
            tokio::select! {
                biased;
                ended = &mut future => return verdict(ended, limit, is_late, is_stopped),
                () = &mut stop, if !is_stopped => is_stopped = true,
                () = &mut late, if !is_late => is_late = true,
            }
            self.unwanted.store(true, Ordering::Release);
            if !is_sync {
                ignore_panic(|| drop(future));
                return if is_stopped { Verdict::Stopped } else { Verdict::Failed(timed_out(limit)) };
            }
        }
    }
}

fn verdict(ended: Result<Ending, CallError>, limit: Duration, is_late: bool, is_stopped: bool) -> Verdict {
    match ended {
        Ok(_) if is_late => Verdict::Failed(timed_out(limit)),
        // It came to its end before it looked.
        Ok(Ending::Succeeded(result)) => Verdict::Succeeded(result),
        _ if is_stopped => Verdict::Stopped,
        Ok(Ending::Failed(failure)) => Verdict::Failed(failure),
        Ok(_) => Verdict::Stopped,
        Err(rejection) => Verdict::NotRun(rejection),
    }
}

/// By this class the state of a job that has no attempts left is known to be `timed_out`.
const TIMEOUT: &str = "timeout";

fn timed_out(limit: Duration) -> Failure {
    Failure::new(TIMEOUT, format!("it took longer than {limit:?}"))
}

impl ProgressSink for Attempt {
    fn id(&self) -> TaskId {
        self.id
    }

    fn advance(&self, progress: Option<f64>, message: Option<String>) {
        let is_news = lock(&self.told).advance(progress, message);
        if is_news {
            self.clerk.told(self.id);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }
}
