use std::ops::{AddAssign, SubAssign};

/// Kind of a permit of a [`Semaphore`](super::Semaphore).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PermitKind {
    /// Counts toward the limit, which may be lowered, and toward the capacity. In the queue of a
    /// pool: a call whose caller expects that it may be rejected.
    Limited,
    /// Counts toward the capacity only. In the queue of a pool: a call that was accepted before it
    /// reached the pool.
    Exempt,
}

/// Numbers of permits of both kinds, in one word, so that one atomic access reads or changes both.
///
/// Counters of acquired and released permits wrap around, and a carry may pass from one half to the
/// other. Their difference is exact, because no half of it exceeds [`MAX_PERMITS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Permits(u64);

/// Maximum number of permits in use.
pub(super) const MAX_PERMITS: usize = 1 << 31;

impl PermitKind {
    /// Returns one permit of this kind, as a summand of a counter.
    #[inline]
    pub(super) const fn unit(self) -> u64 {
        match self {
            Self::Limited => 1,
            Self::Exempt => 1 << 32,
        }
    }
}

impl Permits {
    /// Returns the permits that were acquired and not released. `acquired` must be read after
    /// `released`, so that no half is negative.
    #[inline]
    pub(super) const fn in_use(acquired: u64, released: u64) -> Self {
        Self(acquired.wrapping_sub(released))
    }

    #[inline]
    pub(super) const fn limited(self) -> usize {
        (self.0 as u32) as usize
    }

    #[inline]
    pub(super) const fn total(self) -> usize {
        self.limited() + (self.0 >> 32) as usize
    }

    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign<PermitKind> for Permits {
    fn add_assign(&mut self, kind: PermitKind) {
        self.0 += kind.unit();
    }
}

impl SubAssign<PermitKind> for Permits {
    fn sub_assign(&mut self, kind: PermitKind) {
        self.0 -= kind.unit();
    }
}
