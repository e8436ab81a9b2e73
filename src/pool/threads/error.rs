use std::{error::Error, fmt, io, ops::RangeInclusive};

use crate::pool::queue::Unfit;

/// Why a [`ThreadPool`](super::ThreadPool) could not be built.
#[derive(Debug)]
pub struct BuildError(Kind);

#[derive(Debug)]
pub(super) enum Kind {
    MinOverMax { min: usize, max: usize },
    NameHasNul,
    Niceness { niceness: i32, range: RangeInclusive<i32> },
    NicenessRefused { niceness: i32, error: io::Error },
    NoCapacity,
    NoThreads,
    Policy(Unfit),
    Spawn(io::Error),
    TooManyThreads { what: &'static str, max: usize, limit: usize },
}

impl BuildError {
    pub(super) fn new(kind: Kind) -> Self {
        Self(kind)
    }

    /// `true` if an option is out of range: the program's mistake.
    pub fn is_configuration(&self) -> bool {
        !self.is_permission() && !self.is_spawn()
    }

    /// `true` if the system does not let the threads have the [`niceness`](super::Builder::niceness) that was asked for.
    pub fn is_permission(&self) -> bool {
        matches!(self.0, Kind::NicenessRefused { .. })
    }

    /// `true` if the system refused a thread: too many of them, or no memory for a stack of that size.
    pub fn is_spawn(&self) -> bool {
        matches!(self.0, Kind::Spawn(_))
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::MinOverMax { min, max } => {
                write!(f, "`min_threads` is {min} and `max_threads` is {max}: the first must not exceed the second")
            }
            Kind::NameHasNul => f.write_str("a pool's name must not contain a NUL byte: it names threads"),
            Kind::Niceness { niceness, range } => {
                write!(f, "a thread's nice value is from {} to {}: {niceness} is not", range.start(), range.end())
            }
            Kind::NicenessRefused { niceness, .. } => {
                write!(f, "the system did not let the pool's threads have nice value {niceness}")
            }
            Kind::NoCapacity => f.write_str("a pool with `queue_capacity` 0 admits no call: give it at least 1"),
            Kind::NoThreads => {
                f.write_str("a pool with 0 threads runs no call: give `threads` or `max_threads` at least 1")
            }
            Kind::Policy(unfit) => unfit.fmt(f),
            Kind::Spawn(_) => f.write_str("the system did not give the pool a thread"),
            Kind::TooManyThreads { what, max, limit } => {
                write!(f, "a pool of {max} {what} is over the limit of {limit}")
            }
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::NicenessRefused { error, .. } | Kind::Spawn(error) => Some(error),
            _ => None,
        }
    }
}
