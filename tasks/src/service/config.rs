use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{access::Authorize, source::Source};
use crate::tasks::DEFAULT_MAX_STREAMS;

/// What a service and its clones have in common.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) source: Arc<dyn Source>,
    pub(super) authorize: Authorize,
    pub(super) is_read_only: bool,
    pub(super) keep_alive: Duration,
    pub(super) max_wait: Duration,
    pub(super) max_streams: usize,
    /// A place for each stream that is open, and for each that waits.
    pub(super) streams: Arc<Semaphore>,
}

impl Config {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            authorize: Authorize::default(),
            is_read_only: false,
            keep_alive: Duration::from_secs(15),
            max_wait: Duration::from_secs(30),
            max_streams: DEFAULT_MAX_STREAMS,
            streams: Arc::new(Semaphore::new(DEFAULT_MAX_STREAMS)),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("is_read_only", &self.is_read_only)
            .field("keep_alive", &self.keep_alive)
            .field("max_wait", &self.max_wait)
            .field("max_streams", &self.max_streams)
            .finish_non_exhaustive()
    }
}
