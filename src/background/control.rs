use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use tokio::task::AbortHandle;

use super::{
    over::{self, Callback, Over},
    stopping::Stopping,
};
use crate::panic::ignore_panic;
use crate::{
    pool::{CallError, call::JoinHandle},
    sync::{Mutex, lock},
};

/// What others than the task itself need of a task: who it is, and how to stop it.
pub(super) struct Control {
    pub(super) id: u64,
    pub(super) name: Cow<'static, str>,
    stopping: Stopping<Stop>,
    /// Set by whoever says first how the task ended: the task or its timer.
    settled: AtomicBool,
    on_over: Mutex<Option<Callback>>,
    /// Set if the pool did not take it.
    pub(super) refusal: OnceLock<CallError>,
}

impl Control {
    pub(super) fn new(id: u64, name: Cow<'static, str>) -> Self {
        Self {
            id,
            name,
            stopping: Stopping::new(),
            settled: AtomicBool::new(false),
            on_over: Mutex::new(None),
            refusal: OnceLock::new(),
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.stopping.is_wanted()
    }

    /// `true` once: for the one who may say how the task ended.
    pub(super) fn settle(&self) -> bool {
        !self.settled.swap(true, SeqCst)
    }

    /// Who is to be told by [`over`](Self::over). Set before there is work that could end.
    pub(super) fn on_over(&self, callback: Callback) {
        *lock(&self.on_over) = Some(callback);
    }

    /// Tells it to whoever wants to know, the first time.
    pub(super) fn over(&self, over: Over) {
        let callback = lock(&self.on_over).take();
        if let Some(callback) = callback {
            over::call(callback, over);
        }
    }

    /// Whether somebody wants to know and was not told.
    pub(super) fn is_awaited(&self) -> bool {
        lock(&self.on_over).is_some()
    }

    /// The task was not let begin, by somebody who is about to cancel it.
    pub(super) fn never_begins(&self) {
        self.stopping.mark();
    }

    pub(super) fn cancel(&self) {
        apply(self.stopping.want());
    }

    /// The task is on the pool; also if a runtime that is gone had it before.
    pub(super) fn is_on_pool(self: &Arc<Self>, mut handle: JoinHandle<()>) {
        // The call holds its waker, and so this control, until it is over; so the handle is not dropped before unless
        // that is to cancel it.
        let waker = Waker::from(self.clone());
        if std::pin::Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending() {
            apply(self.stopping.replace(Stop::Pool(handle)));
        }
    }

    /// The task is on its runtime, unless that is gone and the pool has the task by now.
    pub(super) fn is_on_runtime(&self, task: AbortHandle) {
        apply(self.stopping.offer(Stop::Runtime(task)));
    }
}

impl Wake for Control {
    /// The call on the pool is over.
    fn wake(self: Arc<Self>) {
        drop(self.stopping.take());
    }
}

/// How to stop a task that was handed over.
enum Stop {
    /// Dropped early, it drops the work on the pool or makes `cancelled()` true inside it.
    Pool(#[expect(dead_code, reason = "held for its drop")] JoinHandle<()>),
    Runtime(AbortHandle),
}

fn apply(stop: Option<Stop>) {
    // May drop the work, which is foreign.
    ignore_panic(|| match stop {
        Some(Stop::Runtime(task)) => task.abort(),
        Some(Stop::Pool(_)) | None => {}
    });
}
