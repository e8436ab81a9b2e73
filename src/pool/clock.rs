use std::time::Duration;

use tokio::time::Instant;

use super::metrics::Metrics;

/// Time after which a thread that runs calls without a pause reports its busy time to the recorder
/// of feature `metrics`. Recorders are usually read every few seconds.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Clock of a thread that runs calls one after the other. It records how long the thread is busy.
///
/// A call that starts right after another one starts at the time at which that one has ended. A
/// busy thread therefore reads the clock once per call.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    metrics: &'a Metrics,
    /// The current time, if nothing has happened since it was read.
    now: Option<Instant>,
    /// Time at which the last call has ended. `None` if that call did not read the clock.
    ended: Option<Instant>,
    /// Time up to which the busy period of the thread is reported to the recorder. `None` while the
    /// thread is not busy.
    reported: Option<Instant>,
}

impl<'a> Clock<'a> {
    /// Creates the clock of a thread that is not busy.
    pub(super) fn new(metrics: &'a Metrics) -> Self {
        Self { metrics, now: None, ended: None, reported: None }
    }

    /// Makes the thread busy, if it is not.
    #[inline]
    pub(super) fn start(&mut self) {
        if self.reported.is_none() {
            let now = *self.now.get_or_insert_with(Instant::now);
            self.metrics.busy(now);
            self.reported = Some(now);
        }
    }

    /// Returns the time at which a call starts.
    #[inline]
    pub(super) fn start_call(&mut self) -> Instant {
        self.ended = None;
        self.now.take().unwrap_or_else(Instant::now)
    }

    /// Sets the time at which a call has ended.
    #[inline]
    pub(super) fn end_call(&mut self, ended: Instant) {
        self.now = Some(ended);
        self.ended = Some(ended);
    }

    /// Forgets the current time, because something has happened that may have taken a while.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.now = None;
    }

    /// Reports the busy time so far if the thread has been busy for long. Called between calls.
    #[inline]
    pub(super) fn report(&mut self) {
        if let (Some(reported), Some(ended)) = (self.reported, self.ended) {
            if ended.saturating_duration_since(reported) >= REPORT_INTERVAL {
                self.metrics.report_busy(reported, ended);
                self.reported = Some(ended);
            }
        }
    }

    /// Records that the thread is no longer busy, since the end of the last call.
    #[inline]
    pub(super) fn stop(&mut self) {
        if let Some(reported) = self.reported.take() {
            let now = self.ended.unwrap_or_else(Instant::now);
            self.metrics.report_busy(reported, now);
            self.metrics.idle(now);
            self.now = None;
        }
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
