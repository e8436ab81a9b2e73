//! Requests and responses, derived from an id.

use std::{fmt, str::FromStr};

/// A request, which its path encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) id: u32,
    pub(crate) shape: Shape,
    /// Length of the response body.
    pub(crate) length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Empty,
    Pieces,
    Trailers,
    Whole,
}

impl Work {
    pub(crate) fn new(id: u32) -> Self {
        // A prime, so that no two lengths are equal and a mix-up of responses shows.
        const LENGTHS: usize = 150_011;
        let shape = match id % 7 {
            0 => Shape::Empty,
            1 | 2 => Shape::Pieces,
            3 | 4 => Shape::Trailers,
            _ => Shape::Whole,
        };
        let length = if shape == Shape::Empty { 0 } else { id as usize * 7919 % LENGTHS };
        Self { id, shape, length }
    }

    /// Returns the length of the request body; a GET has none.
    pub(crate) fn upload(self) -> usize {
        if self.id % 3 == 0 { 1 + self.length % 20_000 } else { 0 }
    }

    /// Returns `true` if the handler reads the request body. Otherwise the response ends first.
    pub(crate) fn reads(self) -> bool {
        self.id % 2 == 0
    }

    /// Returns `true` if the client cancels it in a run with cancels.
    pub(crate) fn is_cancelled(self) -> bool {
        self.id % 17 == 0
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.id)
    }
}

impl FromStr for Work {
    type Err = std::num::ParseIntError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        path.trim_start_matches('/').parse().map(Self::new)
    }
}
