use std::collections::BTreeSet;

use tokio::time::Instant;

/// The entries that are to be written, in the order in which they became due.
///
/// Tasks that are to be accepted and changes of accepted ones are kept apart, so that a backlog of
/// one does not delay the other.
pub(super) struct Schedule<K> {
    accepts: BTreeSet<(Instant, u64, K)>,
    updates: BTreeSet<(Instant, u64, K)>,
    /// Breaks ties, so that entries due at the same time are taken in order.
    next_number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Accepts,
    Updates,
}

impl Lane {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Accepts => Self::Updates,
            Self::Updates => Self::Accepts,
        }
    }
}

/// Place of an entry in a [`Schedule`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    pub(super) at: Instant,
    number: u64,
    lane: Lane,
}

impl<K: Copy + Ord> Schedule<K> {
    pub(super) fn new() -> Self {
        Self { accepts: BTreeSet::new(), updates: BTreeSet::new(), next_number: 0 }
    }

    fn lane(&mut self, lane: Lane) -> &mut BTreeSet<(Instant, u64, K)> {
        match lane {
            Lane::Accepts => &mut self.accepts,
            Lane::Updates => &mut self.updates,
        }
    }

    /// Adds an entry, which must not be in the schedule.
    pub(super) fn insert(&mut self, lane: Lane, at: Instant, id: K) -> Due {
        self.next_number += 1;
        let due = Due { at, number: self.next_number, lane };
        self.lane(lane).insert((at, due.number, id));
        due
    }

    pub(super) fn remove(&mut self, due: Due, id: K) {
        self.lane(due.lane).remove(&(due.at, due.number, id));
    }

    /// Returns when the first entry is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        [&self.accepts, &self.updates].into_iter().filter_map(|lane| lane.first()).map(|(at, ..)| *at).min()
    }

    /// Returns the first entry of a lane, if it is due.
    pub(super) fn first_due(&mut self, lane: Lane, now: Instant) -> Option<K> {
        self.lane(lane).first().filter(|(at, ..)| *at <= now).map(|(.., id)| *id)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.accepts.is_empty() && self.updates.is_empty()
    }
}

/// The costs that each lane has contributed to a batch.
pub(super) struct Shares {
    /// The lane of the first record, and then the other one.
    lanes: [(Lane, usize); 2],
    /// `true` for lanes that have no further record for this batch.
    ended: [bool; 2],
}

impl Shares {
    pub(super) fn new(first: Lane) -> Self {
        Self { lanes: [(first, 0), (first.other(), 0)], ended: [false; 2] }
    }

    pub(super) fn total(&self) -> usize {
        self.lanes.iter().map(|(_, cost)| cost).sum()
    }

    /// Returns the lane that provides the next record: the one with the smaller share.
    pub(super) fn next(&self) -> Option<Lane> {
        let open = self.lanes.iter().zip(self.ended).filter(|(_, ended)| !ended);
        open.map(|(lane, _)| *lane).min_by_key(|(_, cost)| *cost).map(|(lane, _)| lane)
    }

    pub(super) fn add(&mut self, lane: Lane, cost: usize) {
        self.lanes.iter_mut().filter(|(it, _)| *it == lane).for_each(|(_, total)| *total = total.saturating_add(cost));
    }

    pub(super) fn end(&mut self, lane: Lane) {
        self.lanes.iter().zip(&mut self.ended).for_each(|((it, _), ended)| *ended |= *it == lane);
    }
}
