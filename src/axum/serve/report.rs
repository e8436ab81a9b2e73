use std::fmt;

use crate::background::BackgroundShutdownReport;

/// How a server ended. Returned by [`Serve::shutdown`](super::Serve::shutdown).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeShutdownReport {
    /// The number of connections that were closed because they had not ended in time.
    pub open_connections: usize,
    /// How the tasks ended, and which still ran. Empty for a server without a background.
    pub background: BackgroundShutdownReport,
}

impl ServeShutdownReport {
    pub(super) fn new(open_connections: usize, background: BackgroundShutdownReport) -> Self {
        Self { open_connections, background }
    }

    /// Returns `true` if every connection and every task ended in time.
    pub fn is_clean(&self) -> bool {
        self.open_connections == 0 && self.background.is_clean()
    }
}

/// Formats the report, for example as `1 connection closed early; tasks: 3 completed, 0 failed, 0
/// cancelled, 0 still running`.
impl fmt::Display for ServeShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open_connections, background } = self;
        match open_connections {
            0 => f.write_str("all connections ended")?,
            1 => f.write_str("1 connection closed early")?,
            more => write!(f, "{more} connections closed early")?,
        }
        write!(f, "; tasks: {background}")
    }
}
