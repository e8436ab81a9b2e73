use std::{fmt, panic::resume_unwind, sync::Arc, time::Duration};

use tokio::time::Instant;

#[cfg(feature = "metrics")]
use super::labels::Labels;
use super::{Blocked, Name};
use crate::panic::{catch_unwind, ignore_panic};

/// What a layer hands to each request.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) threshold: Duration,
    pub(super) on_blocking: Option<Callback>,
    #[cfg(feature = "metrics")]
    pub(super) labels: Arc<Labels>,
}

pub(super) type Callback = Arc<dyn Fn(&Blocked<'_>) + Send + Sync>;

/// Measures what one request does to the thread.
pub(super) struct Watch {
    settings: Arc<Settings>,
    name: Name,
    /// Of the next poll; 0 is `call`.
    poll: u64,
}

impl Watch {
    pub(super) fn new(settings: Arc<Settings>, name: Name) -> Self {
        Self { settings, name, poll: 0 }
    }

    /// Runs `call` or a poll. One that panics is measured too, and its panic goes on.
    pub(super) fn over<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = catch_unwind(work);
        let held = start.elapsed();
        let poll = self.poll;
        self.poll += 1;
        if held > self.settings.threshold {
            self.report(poll, held);
        }
        result.unwrap_or_else(|payload| resume_unwind(payload))
    }

    #[cold]
    fn report(&self, poll: u64, held: Duration) {
        let blocked = Blocked { route: self.name.route(), method: self.name.method(), held, poll };
        #[cfg(feature = "tracing")]
        ignore_panic(|| {
            tracing::event!(
                tracing::Level::WARN,
                route = blocked.route,
                method = blocked.method.map(http::Method::as_str),
                held_seconds = held.as_secs_f64(),
                poll,
                "thread blocked"
            );
        });
        #[cfg(feature = "metrics")]
        ignore_panic(|| {
            let bounded = self.name.is_bounded();
            let label = if bounded { blocked.route } else { self.settings.labels.bounded(blocked.route) };
            let labels = [("route", label.to_owned())];
            metrics::counter!("offload_blocking_total", &labels).increment(1);
            metrics::histogram!("offload_blocking_seconds", &labels).record(held);
        });
        if let Some(on_blocking) = &self.settings.on_blocking {
            ignore_panic(|| on_blocking(&blocked)); // a response must not depend on any of these
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
