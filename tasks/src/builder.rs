#[cfg(feature = "river")]
use std::any::Any;
use std::{fmt, sync::Arc, time::SystemTime};

#[cfg(feature = "river")]
use super::SqlStore;
use super::{
    Retention, TaskStore, Tasks,
    shared::{Clock, Shared},
};

/// Configures [`Tasks`]. Made by [`Tasks::builder`].
#[must_use = "a builder does nothing until `build`"]
pub struct Builder {
    store: Arc<dyn TaskStore>,
    #[cfg(feature = "river")]
    engine: Option<SqlStore>,
    retention: Retention,
    process: Option<String>,
    clock: Clock,
}

impl Builder {
    pub(super) fn new(store: impl TaskStore) -> Self {
        Self {
            #[cfg(feature = "river")]
            engine: (&store as &dyn Any).downcast_ref::<SqlStore>().cloned(),
            store: Arc::new(store),
            retention: Retention::default(),
            process: None,
            clock: Arc::new(SystemTime::now),
        }
    }

    /// How long records of tasks that are over are kept. Default: [`Retention::default`].
    pub fn retention(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// What this process is called in the store, for people who look into it. Default: `process` and its number.
    pub fn process(self, name: impl Into<String>) -> Self {
        Self { process: Some(name.into()), ..self }
    }

    /// Where the times in records come from; for tests. Default: the system's clock.
    pub fn clock(self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// Nothing is written and no store is asked before the first use, or [`Tasks::start`].
    pub fn build(self) -> Tasks {
        let process = self.process.unwrap_or_else(|| format!("process {}", std::process::id()));
        let shared = Shared::new(self.store, self.retention, process, self.clock);
        #[cfg(feature = "river")]
        let shared = shared.with_engine(self.engine);
        Tasks::from_shared(shared)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("retention", &self.retention)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}
