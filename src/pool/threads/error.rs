use std::{error::Error, fmt, io};

use crate::pool::queue::Unfit;

/// Why a [`ThreadPool`](super::ThreadPool) could not be built.
#[derive(Debug)]
pub struct BuildError(Kind);

#[derive(Debug)]
pub(super) enum Kind {
    MinOverMax { min: usize, max: usize },
    NameHasNul,
    NoCapacity,
    NoThreads,
    Policy(Unfit),
    Spawn(io::Error),
    TooManyThreads { max: usize, limit: usize },
}

impl BuildError {
    pub(super) fn new(kind: Kind) -> Self {
        Self(kind)
    }

    /// `true` if an option is out of range: the program's mistake.
    pub fn is_configuration(&self) -> bool {
        !self.is_spawn()
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
            Kind::NoCapacity => f.write_str("a pool with `queue_capacity` 0 admits no call: give it at least 1"),
            Kind::NoThreads => {
                f.write_str("a pool with 0 threads runs no call: give `threads` or `max_threads` at least 1")
            }
            Kind::Policy(unfit) => unfit.fmt(f),
            Kind::Spawn(_) => f.write_str("the system did not give the pool a thread"),
            Kind::TooManyThreads { max, limit } => write!(f, "a pool of {max} threads is over the limit of {limit}"),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Kind::Spawn(error) => Some(error),
            _ => None,
        }
    }
}
