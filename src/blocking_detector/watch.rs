use std::{fmt, panic::resume_unwind, sync::Arc, time::Duration};

use tokio::time::Instant;

#[cfg(feature = "metrics")]
use super::labels::Labels;
use super::{
    blocked::{Blocked, Step},
    naming::Name,
};
use crate::panic::{catch_unwind, ignore_panic};

/// The settings of a layer, shared with its services and requests.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) threshold: Duration,
    pub(super) on_blocking: Option<Callback>,
    #[cfg(feature = "metrics")]
    pub(super) labels: Arc<Labels>,
}

pub(super) type Callback = Arc<dyn Fn(&Blocked<'_>) + Send + Sync>;

/// Measures the steps of one request.
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

    /// Runs one step and reports it if it takes too long. A step that panics is measured too; its
    /// panic is resumed.
    pub(super) fn measure<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = catch_unwind(work);
        let duration = start.elapsed();
        let step = self.step;
        self.step = step.next();
        if duration > self.settings.threshold {
            self.report(step, duration);
        }
        result.unwrap_or_else(|payload| resume_unwind(payload))
    }

    /// Panics of subscriber, recorder and callback are caught, so that the response does not depend
    /// on them.
    #[cold]
    fn report(&self, step: Step, duration: Duration) {
        let blocked = Blocked { route: self.name.route(), method: self.name.method(), step, duration };
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
            metrics::describe_counter!("offload_blocking_total", metrics::Unit::Count, "Reports of blocked threads.");
            let seconds = metrics::Unit::Seconds;
            metrics::describe_histogram!("offload_blocking_seconds", seconds, "How long a thread was blocked.");
            let labels = [("route", label.to_owned())];
            metrics::counter!("offload_blocking_total", &labels).increment(1);
            metrics::histogram!("offload_blocking_seconds", &labels).record(duration);
        });
        if let Some(on_blocking) = &self.settings.on_blocking {
            ignore_panic(|| on_blocking(&blocked));
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("threshold", &self.threshold)
            .field("on_blocking", &self.on_blocking.is_some())
            .finish_non_exhaustive()
    }
}
