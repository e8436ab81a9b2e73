use crate::sync::{AtomicU8, Ordering};

/// Nobody holds the response any more: its own side has said all. Set once, by the guard's drop.
const RELEASED: u8 = 1;
/// The wire has said its word, or has none to say. Set once, by the connection, or by the guard when the word does not matter.
const TOLD: u8 = 1 << 1;
/// The outcome can be read. Set once, by whoever came second of the two above.
const SETTLED: u8 = 1 << 2;
/// There is something to run, or was. Set by whoever registers.
const REGISTERED: u8 = 1 << 3;

/// What is known of a response. Four bits that are only ever set.
///
/// Invariants:
/// * Of `released` and `told` exactly one says that the caller settles: the second.
/// * Of `settled` and `registered`, if both happen, at least one says that what is registered is to be run; what was put in the
///   list before is seen by whoever is told so. Both may: the list gives everything out once.
#[derive(Debug)]
pub(super) struct Facts(AtomicU8);

impl Facts {
    /// `has_wire`: whether somebody will say what became of it on the wire.
    pub(super) fn new(has_wire: bool) -> Self {
        Self(AtomicU8::new(if has_wire { 0 } else { TOLD }))
    }

    /// `true` if the caller settles.
    pub(super) fn released(&self) -> bool {
        self.set(RELEASED) & TOLD != 0
    }

    /// As `released`, and whatever the wire says does not matter.
    pub(super) fn released_for_good(&self) -> bool {
        self.set(RELEASED | TOLD) & RELEASED == 0
    }

    /// `true` if the caller settles.
    #[cfg_attr(not(feature = "flush"), allow(dead_code, reason = "for tracked connections"))]
    pub(super) fn told(&self) -> bool {
        self.set(TOLD) & (RELEASED | TOLD) == RELEASED
    }

    /// `true` if the caller runs what is registered.
    pub(super) fn settled(&self) -> bool {
        self.set(SETTLED) & REGISTERED != 0
    }

    /// Something was put in the list. `true` if the caller runs it.
    pub(super) fn registered(&self) -> bool {
        self.set(REGISTERED) & SETTLED != 0
    }

    /// Whether somebody may want to know the outcome.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed) & REGISTERED != 0
    }

    fn set(&self, bits: u8) -> u8 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }
}

#[cfg(all(test, tower_offload_loom))]
mod loom;
