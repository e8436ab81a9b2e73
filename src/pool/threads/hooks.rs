use crate::panic::{catch_unwind, drop_payload};
use std::{fmt, sync::Arc};

type Hook = Arc<dyn Fn() + Send + Sync>;

/// What the user wants run on each thread around its work.
#[derive(Clone, Default)]
pub(super) struct Hooks {
    pub(super) start: Option<Hook>,
    pub(super) stop: Option<Hook>,
}

impl Hooks {
    /// Calls a hook, if there is one. A panic must not cost the pool a thread, and the panic hook has printed it.
    pub(super) fn call(hook: Option<&Hook>, pool: &str) {
        let Some(hook) = hook else { return };
        if let Err(payload) = catch_unwind(|| hook()) {
            drop_payload(payload);
            #[cfg(feature = "tracing")]
            tracing::event!(tracing::Level::ERROR, pool, "thread hook panicked");
            let _ = pool;
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("start", &self.start.is_some()).field("stop", &self.stop.is_some()).finish()
    }
}
