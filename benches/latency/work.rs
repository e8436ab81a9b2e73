//! The CPU job.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// A fixed amount of computation.
///
/// Fixed by its count, not by a clock: a job that is preempted has to come back for the rest, two jobs on one core really
/// take twice as long, and every server of a session does exactly the same work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    iterations: u64,
}

impl Work {
    pub(crate) fn of(iterations: u64) -> Self {
        Self { iterations }
    }

    /// The work that takes `duration` of an idle core. The fastest of many short tries counts, for whatever else the
    /// machine does can only make a try longer.
    pub(crate) fn lasting(duration: Duration) -> Self {
        const TRIES: usize = 400;
        let sample = Self::of(100_000);
        let fastest = (0..TRIES)
            .map(|_| {
                let start = Instant::now();
                sample.run();
                start.elapsed()
            })
            .min()
            .unwrap_or(Duration::MAX);
        Self::of((sample.iterations as f64 * duration.as_secs_f64() / fastest.as_secs_f64()).round() as u64)
    }

    pub(crate) fn iterations(self) -> u64 {
        self.iterations
    }

    /// Does it, on this thread. Never inlined, so that the loop is the same code wherever it is called.
    #[inline(never)]
    pub(crate) fn run(self) {
        let mut state = 1_u64;
        for _ in 0..self.iterations {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}
