//! The job.

use std::{
    fmt,
    hint::black_box,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use crate::latency::BoxError;

/// What one job does with the thread that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A fixed amount of computation.
    ///
    /// Fixed by its count, not by a clock: a job that is preempted has to come back for the rest, two jobs on one core
    /// really take twice as long, and every server of a session does exactly the same work.
    Compute { iterations: u64 },
    /// Waits, as for a disk or a database, and needs no core meanwhile.
    Sleep { milliseconds: u64 },
}

impl Work {
    /// The computation that takes `duration` of an idle core. The fastest of many short tries counts, for whatever else the
    /// machine does can only make a try longer.
    pub(crate) fn lasting(duration: Duration) -> Self {
        const TRIES: usize = 400;
        const SAMPLE: u64 = 100_000;
        let fastest = (0..TRIES)
            .map(|_| {
                let start = Instant::now();
                compute(SAMPLE);
                start.elapsed()
            })
            .min()
            .unwrap_or(Duration::MAX);
        let iterations = (SAMPLE as f64 * duration.as_secs_f64() / fastest.as_secs_f64()).round() as u64;
        Self::Compute { iterations }
    }

    /// Does it, on this thread.
    pub(crate) fn run(self) {
        match self {
            Self::Compute { iterations } => compute(iterations),
            Self::Sleep { milliseconds } => thread::sleep(Duration::from_millis(milliseconds)),
        }
    }
}

/// Never inlined, so that the loop is the same code wherever it is called.
#[inline(never)]
fn compute(iterations: u64) {
    let mut state = 1_u64;
    for _ in 0..iterations {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// As the server's process is told it.
impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compute { iterations } => write!(f, "compute:{iterations}"),
            Self::Sleep { milliseconds } => write!(f, "sleep:{milliseconds}"),
        }
    }
}

impl FromStr for Work {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        match text.split_once(':') {
            Some(("compute", iterations)) => Ok(Self::Compute { iterations: iterations.parse()? }),
            Some(("sleep", milliseconds)) => Ok(Self::Sleep { milliseconds: milliseconds.parse()? }),
            _ => Err(format!("`{text}` is no work").into()),
        }
    }
}
