use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use tokio::task::AbortHandle;

use super::over::{self, Callback, Over};
use crate::{
    pool::{
        Rejection,
        call::{Handle, discard_payload, guarded},
    },
    sync::{Mutex, lock},
};

/// What others than the task itself need of a task: who it is, and how to stop it.
pub(super) struct Control {
    pub(super) id: u64,
    pub(super) name: Cow<'static, str>,
    cancelled: AtomicBool,
    /// Set by whoever says first how the task ended: the task or its timer.
    settled: AtomicBool,
    on_over: Mutex<Option<Callback>>,
    /// Set if the pool did not take it.
    pub(super) refusal: OnceLock<Rejection>,
    stop: Mutex<Stop>,
}

/// How to stop a task that was handed over.
enum Stop {
    Nothing,
    /// Dropped early, it drops the work on the pool or makes `cancelled()` true inside it.
    Pool(#[expect(dead_code, reason = "held for its drop")] Handle<()>),
    Runtime(AbortHandle),
}

impl Control {
    pub(super) fn new(id: u64, name: Cow<'static, str>) -> Self {
        Self {
            id,
            name,
            cancelled: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            on_over: Mutex::new(None),
            refusal: OnceLock::new(),
            stop: Mutex::new(Stop::Nothing),
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(SeqCst)
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

    /// The task was not let begin, by somebody who is about to cancel it.
    pub(super) fn never_begins(&self) {
        self.cancelled.store(true, SeqCst);
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, SeqCst);
        self.apply();
    }

    /// The task is on the pool; also if a runtime that is gone had it before.
    pub(super) fn is_on_pool(self: &Arc<Self>, mut handle: Handle<()>) {
        // The call holds its waker, and so this control, until it is over; so the handle is not dropped before unless
        // that is to cancel it.
        let waker = Waker::from(self.clone());
        if std::pin::Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
        *lock(&self.stop) = Stop::Pool(handle);
        if self.is_cancelled() {
            self.apply();
        }
    }

    /// The task is on its runtime, unless that is gone and the pool has the task by now.
    pub(super) fn is_on_runtime(&self, task: AbortHandle) {
        let mut stop = lock(&self.stop);
        if let Stop::Nothing = *stop {
            *stop = Stop::Runtime(task);
        }
        drop(stop);
        if self.is_cancelled() {
            self.apply();
        }
    }

    fn apply(&self) {
        let stop = std::mem::replace(&mut *lock(&self.stop), Stop::Nothing);
        // May drop the work, which is foreign.
        guarded(|| match stop {
            Stop::Runtime(task) => task.abort(),
            Stop::Nothing | Stop::Pool(_) => {}
        })
        .unwrap_or_else(discard_payload);
    }
}

impl Wake for Control {
    /// The call on the pool is over.
    fn wake(self: Arc<Self>) {
        let stop = std::mem::replace(&mut *lock(&self.stop), Stop::Nothing);
        drop(stop);
    }
}
