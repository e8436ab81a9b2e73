use std::{
    io,
    sync::{Arc, mpsc},
};

use super::{hooks::Hooks, niceness};
use crate::{
    pool::workers::Worker,
    sync::{Mutex, lock},
};

/// What happens on each thread of a pool around its work.
#[derive(Debug)]
pub(super) struct Setup {
    pool: Arc<str>,
    niceness: Option<i32>,
    hooks: Hooks,
    /// There while the pool is being built: the threads that are started meanwhile tell whether they have their nice value.
    first: Mutex<Option<mpsc::Sender<io::Result<()>>>>,
}

impl Setup {
    pub(super) fn new(pool: Arc<str>, niceness: Option<i32>, hooks: Hooks) -> Self {
        Self { pool, niceness, hooks, first: Mutex::new(None) }
    }

    /// Runs `start`, and waits until each thread that it started has its nice value.
    pub(super) fn checked<E>(
        &self,
        start: impl FnOnce() -> Result<(), E>,
        refused: impl Fn(io::Error) -> E,
    ) -> Result<(), E> {
        if self.niceness.is_none() {
            return start();
        }
        let (told, reports) = mpsc::channel();
        *lock(&self.first) = Some(told);
        let started = start();
        *lock(&self.first) = None;
        started?;
        // Ends when each thread has told, or is gone.
        reports.iter().try_for_each(|report| report.map_err(&refused))
    }

    /// To be called where the thread is started: what the thread itself runs.
    pub(super) fn wrap(self: &Arc<Self>, mut worker: Worker) -> impl FnOnce() + use<> {
        let (setup, first) = (self.clone(), lock(&self.first).clone());
        move || {
            if setup.prepare(first) {
                if setup.hooks.start.is_some() {
                    worker.arrive(); // a hook that takes long delays this thread, and no other
                    Hooks::call(setup.hooks.start.as_ref(), &setup.pool);
                }
                worker.run();
                Hooks::call(setup.hooks.stop.as_ref(), &setup.pool);
            }
        }
    }

    /// `false` if the pool is being built and fails because of this thread.
    fn prepare(&self, first: Option<mpsc::Sender<io::Result<()>>>) -> bool {
        let Some(niceness) = self.niceness else { return true };
        match (niceness::set(niceness), first) {
            (Ok(()), None) => true,
            (Err(error), None) => {
                self.refused(niceness, &error);
                true
            }
            (result, Some(first)) => {
                let prepared = result.is_ok();
                let _ = first.send(result);
                prepared
            }
        }
    }

    /// Late work is better than none, so the thread goes on.
    fn refused(&self, niceness: i32, error: &io::Error) {
        #[cfg(feature = "tracing")]
        tracing::event!(
            tracing::Level::WARN,
            pool = &*self.pool,
            niceness,
            error = error as &dyn std::error::Error,
            "thread did not get its nice value"
        );
        let _ = (niceness, error);
    }
}
