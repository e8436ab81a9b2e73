use std::{
    fmt, io,
    ops::RangeInclusive,
    sync::{Arc, mpsc},
};

use super::worker::Worker;
use crate::{
    panic::{catch_unwind, drop_payload},
    sync::{Mutex, lock},
};

/// Nice values that setpriority(2) accepts on Linux. It silently clamps others.
pub(super) const NICENESS_RANGE: RangeInclusive<i32> = -20..=19;

type Hook = Arc<dyn Fn() + Send + Sync>;

/// User closures that run on each thread around its work.
#[derive(Clone, Default)]
pub(super) struct Hooks {
    pub(super) start: Option<Hook>,
    pub(super) stop: Option<Hook>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("start", &self.start.is_some()).field("stop", &self.stop.is_some()).finish()
    }
}

/// Prepares each thread of a `ThreadPool`: sets its nice value and runs the hooks around its work.
#[derive(Debug)]
pub(super) struct ThreadSetup {
    #[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "only events name the pool"))]
    pool: Arc<str>,
    niceness: Option<i32>,
    hooks: Hooks,
    /// Set while the pool is built. Threads that are started in that time report whether they got
    /// their nice value.
    report: Mutex<Option<mpsc::Sender<io::Result<()>>>>,
}

impl ThreadSetup {
    pub(super) fn new(pool: Arc<str>, niceness: Option<i32>, hooks: Hooks) -> Self {
        Self { pool, niceness, hooks, report: Mutex::new(None) }
    }

    /// Runs `start`, and waits until each thread that it has started has set its nice value.
    pub(super) fn start_checked<E>(
        &self,
        start: impl FnOnce() -> Result<(), E>,
        on_denied: impl Fn(io::Error) -> E,
    ) -> Result<(), E> {
        if self.niceness.is_none() {
            return start();
        }
        let (sender, reports) = mpsc::channel();
        *lock(&self.report) = Some(sender);
        let started = start();
        *lock(&self.report) = None;
        started?;
        // Ends once every thread has reported or exited.
        reports.iter().try_for_each(|report| report.map_err(&on_denied))
    }

    /// Returns the main function of a worker's thread. Called on the thread that spawns it.
    pub(super) fn wrap(self: &Arc<Self>, mut worker: Worker) -> impl FnOnce() + use<> {
        let (setup, report) = (self.clone(), lock(&self.report).clone());
        move || {
            if setup.set_niceness(report) {
                if setup.hooks.start.is_some() {
                    worker.on_start(); // A slow hook then delays no other thread.
                    setup.call(setup.hooks.start.as_ref());
                }
                worker.run();
                setup.call(setup.hooks.stop.as_ref());
            }
        }
    }

    /// Returns `false` if the pool is being built and fails because of this thread.
    fn set_niceness(&self, report: Option<mpsc::Sender<io::Result<()>>>) -> bool {
        let Some(niceness) = self.niceness else { return true };
        match (set_niceness(niceness), report) {
            (Ok(()), None) => true,
            (Err(error), None) => {
                // A thread with another nice value is better than none.
                self.on_denied(niceness, &error);
                true
            }
            (result, Some(report)) => {
                let is_set = result.is_ok();
                let _ = report.send(result);
                is_set
            }
        }
    }

    fn on_denied(&self, niceness: i32, error: &io::Error) {
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

    /// Calls a hook, if there is one. Its panic does not cost the pool a thread.
    fn call(&self, hook: Option<&Hook>) {
        let Some(hook) = hook else { return };
        if let Err(payload) = catch_unwind(|| hook()) {
            drop_payload(payload);
            #[cfg(feature = "tracing")]
            tracing::event!(tracing::Level::ERROR, pool = &*self.pool, "thread hook panicked");
        }
    }
}

/// Returns the nice value of the calling thread, or 0 on systems where threads have none.
#[cfg(target_os = "linux")]
pub(super) fn niceness() -> i32 {
    rustix::process::getpriority_process(None).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn niceness() -> i32 {
    0
}

/// Sets the nice value of the calling thread only.
///
/// POSIX has one nice value for all threads of a process. On Linux each thread has its own
/// (setpriority(2), "C library/kernel differences"), and process id 0 means the calling thread.
#[cfg(target_os = "linux")]
fn set_niceness(niceness: i32) -> io::Result<()> {
    Ok(rustix::process::setpriority_process(None, niceness)?)
}

/// Does nothing: on other systems this would change the whole process.
#[cfg(not(target_os = "linux"))]
fn set_niceness(_: i32) -> io::Result<()> {
    Ok(())
}
