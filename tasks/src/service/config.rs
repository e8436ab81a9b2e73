use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;
use tower_offload::offload::RequestHead;

use super::{
    access::{Access, Action, Authorize},
    limits::Limits,
    mount::MountCheck,
    source::Source,
};
use crate::{
    panic::{catch_unwind, drop_payload},
    problem::Problem,
};

/// Options of a status service, shared with its clones and its alias.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) source: Arc<dyn Source>,
    pub(super) authorize: Authorize,
    pub(super) is_read_only: bool,
    pub(super) keep_alive: Duration,
    pub(super) max_wait: Duration,
    pub(super) limits: Limits,
    pub(super) mount: MountCheck,
}

/// Default interval of comments: half of the idle timeout that proxies commonly have.
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Default maximum wait: half of the response timeout that proxies commonly have.
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(30);

impl Config {
    pub(super) fn new(source: impl Source, limits: Limits) -> Self {
        Self {
            source: Arc::new(source),
            authorize: Authorize::default(),
            is_read_only: false,
            keep_alive: DEFAULT_KEEP_ALIVE,
            max_wait: DEFAULT_MAX_WAIT,
            limits,
            mount: MountCheck::default(),
        }
    }

    /// Returns 503 once tasks can no longer be changed.
    pub(super) fn check_open(&self) -> Result<(), Problem> {
        if self.source.is_closed() {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "shutting down"));
        }
        Ok(())
    }

    /// Acquires a permit to read a list, or returns 503.
    pub(super) fn acquire_list(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let too_many = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many lists are being read");
        self.limits.try_acquire_list().ok_or_else(too_many)
    }

    /// Calls the authorization callback.
    ///
    /// # Errors
    ///
    /// Returns 403 if it denies the request and 500 if it panics.
    pub(super) fn authorize(&self, head: &RequestHead<'_>, action: Action) -> Result<Access, Problem> {
        match catch_unwind(|| self.authorize.call(head, &action)) {
            Ok(Access::Denied) => Err(self.limits.deny(&action, self.authorize.denial())),
            Ok(access) => Ok(access),
            Err(payload) => {
                drop_payload(payload);
                Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "authorization callback panicked"))
            }
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("is_read_only", &self.is_read_only)
            .field("keep_alive", &self.keep_alive)
            .field("max_wait", &self.max_wait)
            .finish_non_exhaustive()
    }
}
