//! What time went by, and how much of it this process had.

use std::time::{Duration, Instant};

use crate::platform;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    wall: Instant,
    cpu: Option<Duration>,
}

/// Between two readings. Summed up over the turns of a variant.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    pub(crate) wall: Duration,
    /// The same, where the system does not tell.
    pub(crate) cpu: Duration,
}

impl Reading {
    pub(crate) fn now() -> Self {
        Self { wall: Instant::now(), cpu: platform::cpu_time() }
    }

    pub(crate) fn spent(self) -> Spent {
        let now = Self::now();
        let wall = now.wall - self.wall;
        Spent { wall, cpu: now.cpu.zip(self.cpu).map_or(wall, |(now, then)| now - then) }
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.wall.elapsed()
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
    }
}
