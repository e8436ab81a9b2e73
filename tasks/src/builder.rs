use std::{any::Any, fmt, sync::Arc, time::SystemTime};

use http::{HeaderValue, Uri};

use crate::{Retention, TaskStore, Tasks, text::sanitize, timestamp::Clock, writer::Writer};

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
const MAX_PROCESS_BYTES: usize = 200;
/// Maximum length of a value in a panic message.
const MAX_QUOTED_BYTES: usize = 200;

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
    /// The `Location` of each [`Accepted`](crate::Accepted) starts with it. See
    /// [mounting](crate::service#mounting).
    ///
    /// # Panics
    ///
    /// Panics unless it is a path that starts with `/` or an `http` or `https` URL, without a
    /// query.
    #[track_caller]
    pub fn base_path(self, path: &str) -> Self {
        assert!(
            is_base_path(path),
            "`base_path` must be a path that starts with `/`, or an `http` or `https` URL, without a query, got {:?}",
            sanitize(path, MAX_QUOTED_BYTES)
        );
        Self { base_path: path.trim_end_matches('/').to_owned(), ..self }
    }

    /// Sets how long finished records are kept. Default: [`Retention::default`].
    pub fn retention(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// Sets the name of this process, for people who inspect the store. It is truncated to 200
    /// bytes. Default: `process` and the process id.
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
        let process = sanitize(process, MAX_PROCESS_BYTES);
        let writer = Writer::new(self.store, self.retention, process, self.clock);
        Tasks::from_parts(writer, self.typed_store, self.base_path)
    }
}

/// Returns `true` if `Location` can start with this path. A path that starts with `//` is the name
/// of a host, and one without `/` is relative to the path of the request.
fn is_base_path(path: &str) -> bool {
    let is_path = path.starts_with('/') && !path.starts_with("//");
    let is_url = path.starts_with("http://") || path.starts_with("https://");
    let has_path_only = || path.parse().is_ok_and(|uri: Uri| uri.query().is_none()) && !path.contains('#');
    path.is_empty() || (is_path || is_url) && has_path_only() && HeaderValue::from_str(path).is_ok()
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
