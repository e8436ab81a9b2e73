use std::sync::{Arc, OnceLock};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::Rejection;

/// The handles of one pool, registered at its first call: so a recorder that is installed after the pool was made, but
/// before it is used, gets everything.
#[derive(Debug)]
pub(super) struct Recorder {
    pool: Arc<str>,
    handles: OnceLock<Handles>,
}

pub(super) struct Handles {
    pool: Arc<str>,
    pub(super) abandoned: Counter,
    pub(super) active: Gauge,
    pub(super) panicked: Counter,
    pub(super) queue_depth: Gauge,
    pub(super) queue_wait: Histogram,
    pub(super) resume_wait: Histogram,
    pub(super) run: Histogram,
}

impl Recorder {
    pub(super) fn new(pool: Arc<str>) -> Self {
        Self { pool, handles: OnceLock::new() }
    }

    pub(super) fn get(&self) -> &Handles {
        self.handles.get_or_init(|| {
            let labels = [("pool", self.pool.to_string())];
            Handles {
                pool: self.pool.clone(),
                abandoned: counter!("offload_abandoned_total", &labels),
                active: gauge!("offload_active", &labels),
                panicked: counter!("offload_panicked_total", &labels),
                queue_depth: gauge!("offload_queue_depth", &labels),
                queue_wait: histogram!("offload_queue_wait_seconds", &labels),
                resume_wait: histogram!("offload_resume_wait_seconds", &labels),
                run: histogram!("offload_run_seconds", &labels),
            }
        })
    }
}

impl Handles {
    /// By reason, so not registered ahead: rejections are rare, or cheaper than what they avoid.
    pub(super) fn rejected(&self, rejection: Rejection) -> Counter {
        counter!("offload_rejected_total", "pool" => self.pool.to_string(), "reason" => rejection.as_str())
    }
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}
