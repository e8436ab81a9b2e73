use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use super::server::{Connected, Servers};
use crate::{
    StoreError,
    sync::{Mutex, lock},
};

/// The connections of one role. They are made when they are needed.
pub(super) struct RolePool {
    servers: Arc<Servers>,
    pub(super) limits: Limits,
    /// One permit for each connection.
    permits: Semaphore,
    /// Number of callers that wait for a permit, at most [`Limits::waiting`].
    waiting: AtomicUsize,
    /// Those that are not ready come first. Of the others, the connection that was used last is at
    /// the end, and is used next. `None` once the pool has closed them: a connection that is
    /// returned later is dropped.
    idle: Mutex<Option<Vec<Idle>>>,
    /// `true` since the begin of [`close`](Self::close), which waits for the connections in use.
    is_closing: AtomicBool,
}

/// The limits of a role.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The purpose of the connections, for messages.
    pub(super) purpose: &'static str,
    pub(super) connections: usize,
    /// Maximum number of callers that wait for a connection. Further ones get an error at once.
    pub(super) waiting: usize,
    /// Maximum duration of a transaction. A server that lost its network does not respond, and TCP
    /// gives up only after minutes.
    pub(super) response_timeout: Duration,
}

impl Limits {
    /// Connects. The server cancels a statement before its client gives up: it does not notice that
    /// a client is gone while a statement waits for a lock, so that more and more sessions would
    /// wait, until it accepts no connections.
    pub(super) async fn connect(&self, servers: &Servers) -> Result<Connected, StoreError> {
        servers.connect(self.statement_timeout()).await
    }

    fn statement_timeout(&self) -> Duration {
        self.response_timeout.mul_f64(0.9)
    }
}

struct Idle {
    connected: Connected,
    since: Instant,
    /// `false` after an error and after a caller was dropped: responses may be outstanding.
    is_ready: bool,
    /// Until then, the server may execute the statement of a caller that was dropped. The
    /// connection must not be closed earlier because of a test without a response: its session
    /// would stay on the server, in addition to that of the next connection.
    busy_until: Instant,
}

/// Maximum time to wait for a connection that is in use.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum idle time of a connection that is used without a test.
const MAX_UNTESTED_IDLE: Duration = Duration::from_secs(1);
const TEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum idle time of a connection.
const MAX_IDLE: Duration = Duration::from_secs(10 * 60);
/// Maximum age of a connection, so that a new address or a new password comes into effect.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Maximum time for the replacement of an old connection.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(1);

impl RolePool {
    pub(super) fn new(servers: Arc<Servers>, limits: Limits) -> Self {
        Self {
            servers,
            limits,
            permits: Semaphore::new(limits.connections),
            waiting: AtomicUsize::new(0),
            idle: Mutex::new(Some(Vec::new())),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Adds a connection that the caller has made.
    pub(super) fn add(&self, connected: Connected) {
        self.put(Idle::ready(connected));
    }

    /// Returns an idle connection, or makes one. Fails if the server still executes the statement
    /// of a caller that was dropped, and no other connection is idle.
    ///
    /// An old connection that works is used further if it cannot be replaced: a server without a
    /// free connection would cost the lease otherwise.
    pub(super) async fn acquire(&self) -> Result<Lent<'_>, StoreError> {
        let mut lent = Lent {
            pool: self,
            connected: None,
            is_in_transaction: false,
            must_close: false,
            busy_until: None,
            _permit: self.permit().await?,
        };
        if self.is_closing.load(Ordering::Relaxed) {
            return Err(StoreError::closed());
        }
        // In a statement of its own, so that the lock is not held across an `.await`.
        while let Some(idle) = self.take_idle() {
            if lent.test(idle).await? {
                break;
            }
        }
        match &mut lent.connected {
            Some(old) if old.age() > MAX_AGE => {
                if let Ok(Ok(connected)) = timeout(REPLACE_TIMEOUT, self.limits.connect(&self.servers)).await {
                    *old = connected;
                }
            }
            Some(_) => {}
            // No error of a connection attempt is the fault of what the caller wants to do.
            connected @ None => {
                *connected = Some(self.limits.connect(&self.servers).await.map_err(StoreError::into_unavailable)?);
            }
        }
        lent.busy_until = None;
        Ok(lent)
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(permit);
        }
        let waiter = Waiter(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.waiting {
            return Err(self.all_busy(&format!("and {} callers wait", self.limits.waiting)));
        }
        let permit = timeout(ACQUIRE_TIMEOUT, self.permits.acquire()).await;
        drop(waiter);
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(StoreError::closed()),
            Err(_) => Err(self.all_busy(&format!("for {ACQUIRE_TIMEOUT:?}"))),
        }
    }

    fn all_busy(&self, rest: &str) -> StoreError {
        if self.is_closing.load(Ordering::Relaxed) {
            return StoreError::closed();
        }
        let (Limits { purpose, connections, .. }, servers) = (self.limits, self.servers.names());
        StoreError::unavailable(format!("all connections for {purpose} ({connections}) to {servers} are busy {rest}"))
    }

    fn take_idle(&self) -> Option<Idle> {
        lock(&self.idle).as_mut()?.pop()
    }

    fn put(&self, unused: Idle) {
        // Dropped after the lock is released. `None` if the pool was closed while it was in use.
        let _closed = match &mut *lock(&self.idle) {
            Some(idle) => {
                idle.retain(|idle| idle.since.elapsed() < MAX_IDLE);
                let index = if unused.is_ready { idle.len() } else { 0 };
                idle.insert(index, unused);
                None
            }
            None => Some(unused),
        };
    }

    /// Waits for the transactions that are running, and closes all connections.
    pub(super) async fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        drop(timeout(self.limits.response_timeout, self.permits.acquire_many(all)).await);
        self.permits.close();
        let idle = lock(&self.idle).take();
        for idle in idle.into_iter().flatten() {
            let _ = timeout(TEST_TIMEOUT, idle.connected.connection.close()).await;
        }
    }
}

impl Idle {
    fn ready(connected: Connected) -> Self {
        let since = Instant::now();
        Self { connected, since, is_ready: true, busy_until: since }
    }
}

/// A caller that waits for a permit.
struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection in use. If it is dropped, it is tested before its next use: statements that were
/// sent end first. It is closed instead
///
/// - in a transaction: if its owner was dropped during `BEGIN`, sqlx does not know of the
///   transaction and would not roll it back, and later statements would be executed in it;
/// - during a test, if the server cannot be executing a statement: a dead connection would stay in
///   the pool if all callers leave before the test times out.
pub(super) struct Lent<'a> {
    pool: &'a RolePool,
    /// `None` after `release` and `discard`.
    connected: Option<Connected>,
    /// `true` since before `BEGIN` was sent, until its transaction has ended.
    is_in_transaction: bool,
    /// `true` if the connection is not used again.
    must_close: bool,
    /// [`Idle::busy_until`] of a connection on which its owner executes no statement. `None` if it
    /// may execute one.
    busy_until: Option<Instant>,
    _permit: SemaphorePermit<'a>,
}

impl Lent<'_> {
    /// Returns `true` if `idle` can be used, and closes it otherwise. Fails if the server may still
    /// execute a statement of a caller that was dropped. In this case `idle` returns to the pool,
    /// also if this future is dropped.
    async fn test(&mut self, idle: Idle) -> Result<bool, StoreError> {
        if !idle.connected.is_trusted(&self.pool.servers) {
            return Ok(false);
        }
        self.busy_until = Some(idle.busy_until);
        let connected = self.connected.insert(idle.connected);
        if idle.is_ready && idle.since.elapsed() <= MAX_UNTESTED_IDLE {
            return Ok(true);
        }
        match timeout(TEST_TIMEOUT, connected.connection.ping()).await {
            Ok(Ok(())) => Ok(true),
            Err(_) if Instant::now() < idle.busy_until => {
                Err(self.pool.all_busy("with statements whose callers have given up"))
            }
            Ok(Err(_)) | Err(_) => {
                self.connected = None;
                Ok(false)
            }
        }
    }

    pub(super) fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        let connected = self.connected.as_mut().ok_or_else(|| StoreError::other("the connection was released"))?;
        Ok(&mut connected.connection)
    }

    /// Returns the name of the server.
    pub(super) fn server(&self) -> Arc<str> {
        self.connected.as_ref().map_or_else(Arc::default, |connected| self.pool.servers.name(connected.server).clone())
    }

    /// Notes that a transaction is about to begin, which ends before the connection is released.
    pub(super) fn begins_transaction(&mut self) {
        self.is_in_transaction = true;
    }

    /// Notes that the connection cannot be used again.
    pub(super) fn must_close(&mut self) {
        self.must_close = true;
    }

    /// Returns the connection for the next caller.
    pub(super) fn release(mut self) {
        if let Some(connected) = self.connected.take() {
            self.pool.put(Idle::ready(connected));
        }
    }

    /// Closes the connection, because it does not respond.
    pub(super) fn discard(mut self) {
        self.connected = None;
    }

    /// Releases the connection after an error, or closes it if the error says that it or all
    /// connections cannot be used.
    pub(super) fn release_after(mut self, error: Option<&sqlx::Error>) {
        self.is_in_transaction = false; // it was rolled back
        let code = error.and_then(sqlx::Error::as_database_error).and_then(sqlx::error::DatabaseError::code);
        let Some(connected) = &self.connected else { return };
        match code.as_deref() {
            // read_only_sql_transaction, and the codes with which a server ends its sessions:
            // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped,
            // idle_session_timeout. A statement that was cancelled is 57014.
            Some(code) if code == "25006" || code.starts_with("57P") => {
                self.pool.servers.distrust(connected, code);
                self.connected = None;
            }
            Some(_) => {}
            None if matches!(error, Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_))) => {
                self.connected = None;
            }
            None => {}
        }
        if let Some(connected) = self.connected.take().filter(|_| !self.must_close) {
            self.pool.put(Idle { is_ready: false, ..Idle::ready(connected) });
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connected) = self.connected.take().filter(|_| !self.is_in_transaction) {
            let since = Instant::now();
            let busy_until = self.busy_until.unwrap_or_else(|| since + self.pool.limits.statement_timeout());
            if busy_until > since {
                self.pool.put(Idle { connected, since, is_ready: false, busy_until });
            }
        }
    }
}
