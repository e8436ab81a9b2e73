use std::{fmt, panic::resume_unwind, sync::Arc, time::Duration};

use tokio::time::Instant;

#[cfg(feature = "metrics")]
use super::labels::Labels;
use super::{
    blocked::{Blocked, Step, ThreadInfo},
    naming::Name,
    watchdog::watched,
};
#[cfg(feature = "metrics")]
use crate::blocking_metrics::record_blocked;
use crate::panic::{catch_unwind, ignore_panic};

/// Minimum duration after which a step that has not ended is reported. Most steps above the
/// threshold end sooner, and are reported once, when their duration is known.
const MIN_STILL_BLOCKED: Duration = Duration::from_millis(100);

/// The settings of a layer, shared with its services and requests.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) threshold: Duration,
    pub(super) on_blocking: Option<Callback>,
    pub(super) on_still_blocking: Option<Callback>,
    #[cfg(feature = "metrics")]
    pub(super) labels: Arc<Labels>,
}

pub(super) type Callback = Arc<dyn Fn(&Blocked<'_>) + Send + Sync>;

/// Measures the steps of one request.
#[derive(Clone)]
pub(super) struct Watch {
    settings: Arc<Settings>,
    name: Name,
    /// The step that is measured next.
    step: Step,
}

impl Watch {
    pub(super) fn new(settings: Arc<Settings>, name: Name) -> Self {
        Self { settings, name, step: Step::Call }
    }

    #[cfg(all(test, not(tower_offload_loom)))]
    pub(super) fn for_tests() -> Self {
        let settings = super::BlockingDetectorLayer::new().settings().clone();
        Self::new(settings, Name::from_closure("a step"))
    }

    /// Runs one step and reports it if it takes too long. A step that panics is measured too; its
    /// panic is resumed.
    pub(super) fn measure<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = watched(self, || catch_unwind(work));
        let duration = start.elapsed();
        let step = self.step;
        self.step = step.next();
        if duration > self.settings.threshold {
            self.report(step, duration);
        }
        result.unwrap_or_else(|payload| resume_unwind(payload))
    }

    /// Duration after which a step that has not ended is reported.
    pub(super) fn still_blocked_after(&self) -> Duration {
        self.settings.threshold.max(MIN_STILL_BLOCKED)
    }

    /// Reports a step that has ended. Panics of subscriber, recorder and callback are caught, so
    /// that the response does not depend on them.
    #[cold]
    fn report(&self, step: Step, duration: Duration) {
        let thread = ThreadInfo::current();
        let blocked = self.blocked(step, duration, &thread);
        #[cfg(feature = "tracing")]
        ignore_panic(|| {
            tracing::event!(
                tracing::Level::WARN,
                route = blocked.route,
                method = blocked.method.map(http::Method::as_str),
                duration_seconds = duration.as_secs_f64(),
                poll = step.number(),
                "thread blocked"
            );
        });
        #[cfg(feature = "metrics")]
        ignore_panic(|| {
            let bounded = self.name.is_bounded();
            let label = if bounded { blocked.route } else { self.settings.labels.bounded(blocked.route) };
            record_blocked(label.to_owned(), duration);
        });
        if let Some(on_blocking) = &self.settings.on_blocking {
            ignore_panic(|| on_blocking(&blocked));
        }
    }

    /// Reports a step that has not ended. Called on the watchdog's thread, with a clone that was
    /// made during the step.
    pub(super) fn report_still_blocked(&self, thread: &ThreadInfo, duration: Duration) {
        let blocked = self.blocked(self.step, duration, thread);
        #[cfg(feature = "tracing")]
        ignore_panic(|| {
            tracing::event!(
                tracing::Level::WARN,
                route = blocked.route,
                method = blocked.method.map(http::Method::as_str),
                duration_seconds = duration.as_secs_f64(),
                poll = self.step.number(),
                thread = thread.name.as_deref(),
                thread_id = thread.id,
                "thread still blocked"
            );
        });
        if let Some(on_still_blocking) = &self.settings.on_still_blocking {
            ignore_panic(|| on_still_blocking(&blocked));
        }
    }

    fn blocked<'a>(&'a self, step: Step, duration: Duration, thread: &'a ThreadInfo) -> Blocked<'a> {
        Blocked { route: self.name.route(), method: self.name.method(), step, duration, thread }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("threshold", &self.threshold)
            .field("on_blocking", &self.on_blocking.is_some())
            .field("on_still_blocking", &self.on_still_blocking.is_some())
            .finish_non_exhaustive()
    }
}
