use std::{fmt, time::Duration};

use tokio::time::Instant;

use crate::background::BackgroundShutdownReport;

/// The least that [`ServeShutdownReport::remaining`] returns.
const MIN_REMAINING: Duration = Duration::from_secs(1);

/// How a server ended. Returned by [`Serve::shutdown`](super::Serve::shutdown).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeShutdownReport {
    /// The number of connections that were closed because they had not ended in time.
    pub open_connections: usize,
    /// How the tasks ended, and which still ran. Empty for a server without a background.
    pub background: BackgroundShutdownReport,
    /// When the grace period began, and how long it is.
    grace: Option<(Instant, Duration)>,
}

impl ServeShutdownReport {
    pub(super) fn new(
        open_connections: usize,
        background: BackgroundShutdownReport,
        began: Instant,
        grace: Duration,
    ) -> Self {
        Self { open_connections, background, grace: Some((began, grace)) }
    }

    /// Returns `true` if every connection and every task ended in time.
    pub fn is_clean(&self) -> bool {
        self.open_connections == 0 && self.background.is_clean()
    }

    /// Returns the time that is left of the grace period, but at least one second.
    ///
    /// Use it as the timeout of what the program shuts down after the server, so that one grace
    /// period limits the whole shutdown. Each of these steps has at least a second to store its
    /// state, also if the server has used up the grace period, so a program with `n` further steps
    /// ends at most about `n` seconds after it.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_offload::{ThreadPool, axum::{serve, shutdown_signal}};
    /// # #[tokio::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let (app, pool) = (axum::Router::new(), ThreadPool::cpu());
    /// # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// let stopped = serve(listener, app).shutdown(shutdown_signal()?, Duration::from_secs(20), None).await;
    /// println!("{stopped}; {}", pool.shutdown(stopped.remaining()).await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn remaining(&self) -> Duration {
        self.grace.map_or(MIN_REMAINING, |(began, grace)| grace.saturating_sub(began.elapsed()).max(MIN_REMAINING))
    }
}

/// Formats the report, for example as `1 connection was closed before it ended; tasks: 3
/// completed`. A server without background tasks has the first part only.
impl fmt::Display for ServeShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open_connections, background, .. } = self;
        match open_connections {
            0 => f.write_str("all connections ended")?,
            1 => f.write_str("1 connection was closed before it ended")?,
            more => write!(f, "{more} connections were closed before they ended")?,
        }
        if *background == BackgroundShutdownReport::default() { Ok(()) } else { write!(f, "; {background}") }
    }
}
