use std::{any::Any, sync::Arc, time::Duration};

use tokio::{runtime::Handle, task::AbortHandle, time::Instant};

#[cfg(feature = "metrics")]
use super::recorder;
use super::{control::Control, failure::Cause, over::Over, shared::Shared, state::Ended};
use crate::panic::{drop_payload, ignore_panic};
#[cfg(feature = "metrics")]

/// A permit on its way through a task. Whatever happens to the task, the ticket ends it: at the latest when it is dropped.
pub(super) struct Ticket {
    pub(super) shared: Arc<Shared>,
    pub(super) control: Arc<Control>,
    limit: Option<Duration>,
    is_blocking: bool,
    begun: Option<Begun>,
    over: bool,
}

struct Begun {
    at: Instant,
    timer: Option<AbortHandle>,
}

impl Ticket {
    pub(super) fn new(shared: Arc<Shared>, control: Arc<Control>, limit: Option<Duration>, is_blocking: bool) -> Self {
        Self { shared, control, limit, is_blocking, begun: None, over: false }
    }

    /// Says that the task's code is about to run; `false` if it must not. In the runtime that keeps its time, if any.
    pub(super) fn begin(&mut self) -> bool {
        let at = Instant::now();
        let Some(since) = self.shared.begin(self.control.id, at) else {
            self.control.never_begins();
            return false;
        };
        let timer = self.limit.zip(Handle::try_current().ok()).map(|(limit, runtime)| {
            let (shared, control, is_blocking) = (self.shared.clone(), self.control.clone(), self.is_blocking);
            let timer = runtime.spawn(async move {
                tokio::time::sleep(limit).await;
                if control.settle() {
                    shared.report(&control, Cause::TimedOut { limit, still_running: is_blocking });
                    control.cancel();
                    if is_blocking {
                        control.over(Over::TimedOut); // an async one is over when it is dropped, which is soon
                    }
                }
            });
            timer.abort_handle()
        });
        self.begun = Some(Begun { at, timer });
        #[cfg(feature = "metrics")]
        ignore_panic(|| recorder::began(&self.control, at.duration_since(since)));
        let _ = since;
        true
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// The task returned or panicked.
    pub(super) fn end(mut self, result: Result<Result<(), String>, Box<dyn Any + Send>>) {
        let cause = match result {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(Cause::Error(message)),
            Err(payload) => {
                let cause = Cause::panicked(&*payload);
                drop_payload(payload);
                Some(cause)
            }
        };
        self.finish(cause);
    }

    fn finish(&mut self, cause: Option<Cause>) {
        self.over = true;
        let ran = self.begun.as_ref().map(|begun| begun.at.elapsed());
        if let Some(timer) = self.begun.take().and_then(|begun| begun.timer) {
            timer.abort();
        }
        let late = self.limit.filter(|limit| ran.is_some_and(|ran| ran > *limit));
        let is_panic = matches!(cause, Some(Cause::Panicked(_)));
        let (ended, over) = if !self.control.settle() {
            (Ended::Failed, Over::TimedOut) // its timer said so
        } else if self.control.is_cancelled() && !is_panic {
            (Ended::Cancelled, Over::Cancelled)
        } else {
            let late = late.map(|limit| Cause::TimedOut { limit, still_running: false });
            match cause.or(late) {
                None => (Ended::Completed, Over::Completed),
                Some(cause) => {
                    let over = cause.over();
                    self.shared.report(&self.control, cause);
                    (Ended::Failed, over)
                }
            }
        };
        #[cfg(feature = "metrics")]
        ignore_panic(|| recorder::ended(&self.control, ended, ran));
        self.control.over(over); // before the place is free: a drain waits for it
        self.shared.end(self.control.id, ended);
    }
}

impl Drop for Ticket {
    /// The work was dropped before it ended.
    fn drop(&mut self) {
        if !self.over {
            let lost = self.begun.is_some();
            let refusal = self.control.refusal.get().copied();
            self.finish(Some(if lost { Cause::Lost } else { Cause::Refused(refusal) }));
        }
    }
}
