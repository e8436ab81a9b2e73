use super::{
    metrics::Metrics,
    time::{self, PoolTime},
};

/// Busy time that a thread collects before it reports it to the recorder of feature `metrics`, in
/// nanoseconds. A thread that parks reports what it has.
const REPORT_INTERVAL: PoolTime = 1_000_000;

/// Clock of a thread that runs calls one after the other. It records how long the thread is busy.
///
/// A call that starts right after another one starts at the time at which that one has ended. A
/// busy thread therefore reads the clock once per call.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The current time, if nothing has happened since it was read.
    now: Option<PoolTime>,
    /// Time at which the last call has ended. `None` if that call did not read the clock.
    ended: Option<PoolTime>,
    /// Time since which the thread is busy and has not reported it. `None` while it is not busy.
    busy_since: Option<PoolTime>,
    /// Time that the thread was busy before that and has not reported.
    unreported: PoolTime,
}

impl Clock {
    /// Makes the thread busy, if it is not.
    #[inline]
    pub(super) fn start(&mut self, metrics: &Metrics) {
        if self.busy_since.is_none() {
            let now = time::now();
            metrics.busy(now);
            self.busy_since = Some(now);
            // The last call has ended before this thread was idle.
            (self.now, self.ended) = (Some(now), None);
        }
    }

    /// Returns the time at which a call starts.
    #[inline]
    pub(super) fn start_call(&mut self) -> PoolTime {
        self.ended = None;
        self.now.take().unwrap_or_else(time::now)
    }

    /// Sets the time at which a call has ended.
    #[inline]
    pub(super) fn end_call(&mut self, ended: PoolTime) {
        self.now = Some(ended);
        self.ended = Some(ended);
    }

    /// Called instead of `start_call` for a call that is not polled. Its drop may take a while.
    pub(super) fn skip_call(&mut self) {
        (self.now, self.ended) = (None, None);
    }

    /// Forgets the current time, because something has happened that may have taken a while.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.now = None;
    }

    /// Reports the busy time so far if it is long. Called between two calls.
    #[inline]
    pub(super) fn report(&mut self, metrics: &Metrics) {
        if let (Some(since), Some(ended)) = (self.busy_since, self.ended) {
            let unreported = self.unreported + ended.saturating_sub(since);
            if unreported >= REPORT_INTERVAL {
                metrics.report_busy(unreported);
                (self.unreported, self.busy_since) = (0, Some(ended));
            }
        }
    }

    /// Records that the thread is no longer busy, since the end of the last call.
    #[inline]
    pub(super) fn stop(&mut self, metrics: &Metrics) {
        if let Some(since) = self.busy_since.take() {
            // `now` is set if no call has ended because none has begun.
            let now = self.ended.or(self.now).unwrap_or_else(time::now);
            metrics.idle(now);
            self.unreported += now.saturating_sub(since);
        }
    }

    /// Reports the rest. Called before the thread parks or exits.
    pub(super) fn flush(&mut self, metrics: &Metrics) {
        self.stop(metrics);
        if self.unreported > 0 {
            metrics.report_busy(std::mem::take(&mut self.unreported));
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn entry_without_a_call_takes_no_busy_time_back() {
        let metrics = Metrics::new(&"pool".into());
        let mut clock = Clock::default();
        clock.start(&metrics);
        clock.start_call();
        tokio::time::advance(Duration::from_secs(1)).await;
        clock.end_call(time::now());
        clock.flush(&metrics);

        tokio::time::advance(Duration::from_secs(3600)).await;
        clock.start(&metrics);
        // The caller has left, and nothing is called.
        clock.flush(&metrics);
        assert_eq!(metrics.busy_time_and_age().0, Duration::from_secs(1));
    }
}
