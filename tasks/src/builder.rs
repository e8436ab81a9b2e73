use std::{any::Any, fmt, sync::Arc, time::SystemTime};

use http::HeaderValue;

use crate::{Retention, TaskStore, Tasks, timestamp::Clock, writer::Writer};

impl Tasks {
    /// Creates `Tasks` that keep their records in `store`, with the default options.
    ///
    /// The store is not used until [`start`](Self::start) or another operation is called.
    pub fn new(store: impl TaskStore) -> Self {
        Self::builder(store).build()
    }

    /// Returns a builder for `Tasks` that keep their records in `store`.
    pub fn builder(store: impl TaskStore) -> TasksBuilder {
        let store = Arc::new(store);
        TasksBuilder {
            typed_store: store.clone(),
            store,
            base_path: DEFAULT_BASE_PATH.to_owned(),
            retention: Retention::default(),
            process: None,
            clock: Clock::new(SystemTime::now),
        }
    }
}

const DEFAULT_BASE_PATH: &str = "/tasks";

/// Configures [`Tasks`]. Returned by [`Tasks::builder`].
#[must_use = "a builder does nothing until `build` is called"]
pub struct TasksBuilder {
    store: Arc<dyn TaskStore>,
    /// The same store, which [`Tasks::store`] downcasts to its concrete type.
    typed_store: Arc<dyn Any + Send + Sync>,
    base_path: String,
    retention: Retention,
    process: Option<String>,
    clock: Clock,
}

impl TasksBuilder {
    /// Sets the path or URL at which the [status service](Tasks::service) is mounted. Default:
    /// `/tasks`.
    ///
    /// The `Location` of each [`Accepted`](crate::Accepted) starts with it. A nested service does
    /// not know its own path.
    ///
    /// # Panics
    ///
    /// Panics if the path is not a valid header value.
    #[track_caller]
    pub fn base_path(self, path: &str) -> Self {
        assert!(HeaderValue::from_str(path).is_ok(), "`base_path` must be a valid header value, got {path:?}");
        Self { base_path: path.trim_end_matches('/').to_owned(), ..self }
    }

    /// Sets how long finished records are kept. Default: [`Retention::default`].
    pub fn retention(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// Sets the name of this process, for people who inspect the store. Default: `process` and the
    /// process id.
    pub fn process(self, name: impl Into<String>) -> Self {
        Self { process: Some(name.into()), ..self }
    }

    /// Sets the source of the times in records, for tests. Default: the system clock.
    pub fn clock(self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { clock: Clock::new(clock), ..self }
    }

    /// Creates the `Tasks`. The store is not used yet.
    pub fn build(self) -> Tasks {
        let process = self.process.unwrap_or_else(|| format!("process {}", std::process::id()));
        let writer = Writer::new(self.store, self.retention, process, self.clock);
        Tasks::from_parts(writer, self.typed_store, self.base_path)
    }
}

impl fmt::Debug for TasksBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TasksBuilder")
            .field("base_path", &self.base_path)
            .field("retention", &self.retention)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}
