//! Order in which entries with a key are served.

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
};

use super::key::CallKey;

/// Maximum number of keys that have a flow of their own. It bounds the memory that keys need
/// besides their entries.
pub(super) const MAX_FLOWS: usize = 4096;

/// Stands for the entries without a key among the groups. No group has this id.
const UNKEYED: u32 = 0;

/// Entries of one key that wait.
pub(super) trait Flow {
    /// Returns the number of entries.
    fn len(&self) -> usize;
}

impl<T> Flow for VecDeque<T> {
    fn len(&self) -> usize {
        self.len()
    }
}

/// Entries with a key that wait, and whose turn it is. Pure: no locks, and no time.
///
/// Groups take turns, and so do the keys of a group whenever it is the group's turn. A key without
/// a group is a group of its own. Entries without a key wait elsewhere, and take turns like one
/// more group. A turn is one entry.
///
/// A group that starts to wait has the last turn, and one that no longer waits is forgotten.
/// Between two turns of a group that waits, every other group therefore has at most one. The same
/// is true for the keys of a group.
///
/// While [`MAX_FLOWS`] keys wait, another key shares the flow of one of them.
#[derive(Debug)]
pub(super) struct Flows<Q> {
    groups: Turns<Group<Q>>,
    size: Size,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    flows: usize,
    /// Number of entries in all flows.
    entries: usize,
}

#[derive(Debug)]
enum Group<Q> {
    Unkeyed,
    /// A key without a group.
    Key(Q),
    Keys(Turns<Q>),
}

impl<Q: Flow> Flows<Q> {
    pub(super) fn new() -> Self {
        Self { groups: Turns::new(), size: Size::default() }
    }

    /// Returns the number of entries with a key.
    pub(super) fn len(&self) -> usize {
        self.size.entries
    }

    /// Calls `push`, which adds one entry to the flow of `key`. `new` creates an empty flow.
    pub(super) fn push(&mut self, key: CallKey, new: impl Fn() -> Q, push: impl FnOnce(&mut Q)) {
        let Self { groups, size } = self;
        let is_full = size.flows >= MAX_FLOWS;
        let mut create = || {
            size.flows += 1;
            new()
        };
        let member = key.member().map_or(0, NonZeroU32::get);
        let id = groups.find(key.top().get(), is_full);
        let group = groups.enter(id, || match member {
            0 => Group::Key(create()),
            _ => Group::Keys(Turns::new()),
        });
        let flow = match group {
            Group::Key(flow) => flow,
            Group::Keys(keys) => {
                let id = keys.find(member, is_full);
                keys.enter(id, create)
            }
            Group::Unkeyed => unreachable!("`find` does not return `UNKEYED`"),
        };
        push(flow);
        size.entries += 1;
    }

    /// Removes an entry of the flow whose turn it is. That may be `unkeyed`, the entries without a
    /// key. `pop` removes an entry, and others as it likes. A flow from which it returns `None` is
    /// passed over: one that is not empty then has the last turn.
    pub(super) fn pop<T>(&mut self, unkeyed: &mut Q, mut pop: impl FnMut(&mut Q) -> Option<T>) -> Option<T> {
        if self.size.entries == 0 {
            return pop(unkeyed);
        }
        self.enter_unkeyed(unkeyed);
        let Self { groups, size } = self;
        groups.next(|group| match group {
            Group::Unkeyed => (pop(unkeyed), unkeyed.len() > 0),
            Group::Key(flow) => size.change(flow, &mut pop),
            Group::Keys(keys) => (keys.next(|flow| size.change(flow, &mut pop)), !keys.is_empty()),
        })
    }

    /// Calls `cut` with flows and the numbers of entries that they keep, such that at most `keep`
    /// are left, with those in `unkeyed`. `len` counts the entries of a flow that may be removed.
    /// Longer groups are cut first, and in a group longer flows.
    pub(super) fn cut(
        &mut self,
        unkeyed: &mut Q,
        keep: usize,
        len: impl Fn(&Q) -> usize,
        mut cut: impl FnMut(&mut Q, usize),
    ) {
        self.enter_unkeyed(unkeyed);
        let Self { groups, size } = self;
        let unkeyed_len = len(unkeyed);
        let len_of_group = |group: &Group<Q>| match group {
            Group::Unkeyed => unkeyed_len,
            Group::Key(flow) => len(flow),
            Group::Keys(keys) => keys.sum(&len),
        };
        groups.cut(keep, len_of_group, |group, keep| match group {
            Group::Unkeyed => {
                cut(unkeyed, keep);
                unkeyed.len() > 0
            }
            Group::Key(flow) => size.change(flow, |flow| cut(flow, keep)).1,
            Group::Keys(keys) => {
                keys.cut(keep, &len, |flow, keep| size.change(flow, |flow| cut(flow, keep)).1);
                !keys.is_empty()
            }
        });
    }

    /// Returns the sum of the lengths of all flows with a key.
    pub(super) fn sum(&self, len: impl Fn(&Q) -> usize) -> usize {
        self.groups.sum(|group| match group {
            Group::Unkeyed => 0,
            Group::Key(flow) => len(flow),
            Group::Keys(keys) => keys.sum(&len),
        })
    }

    /// Gives the entries without a key a turn, if there are any. They keep it until it comes, even
    /// if no other entry is left by then.
    fn enter_unkeyed(&mut self, unkeyed: &Q) {
        if unkeyed.len() > 0 {
            self.groups.enter(UNKEYED, || Group::Unkeyed);
        }
    }

    /// Returns the flow that has the next turn among those with a key, or nearly so.
    pub(super) fn front(&self) -> Option<&Q> {
        self.groups.iter().find_map(|group| match group {
            Group::Unkeyed => None,
            Group::Key(flow) => Some(flow),
            Group::Keys(keys) => keys.iter().next(),
        })
    }

    /// Calls `change` for every flow. It may remove entries.
    pub(super) fn for_each(&mut self, mut change: impl FnMut(&mut Q)) {
        let Self { groups, size } = self;
        groups.retain(|group| match group {
            Group::Unkeyed => false,
            Group::Key(flow) => size.change(flow, &mut change).1,
            Group::Keys(keys) => {
                keys.retain(|flow| size.change(flow, &mut change).1);
                !keys.is_empty()
            }
        });
    }

    /// Frees the memory of an empty table.
    pub(super) fn shrink(&mut self) {
        // Checked first, because most pools have no keys and become empty often.
        if self.size.entries == 0 && self.groups.order.capacity() > 0 {
            self.groups = Turns::new();
        }
    }

    #[cfg(all(test, not(tower_offload_loom)))]
    fn flows(&self) -> usize {
        self.size.flows
    }
}

impl Size {
    /// Changes a flow. Returns `true` if entries are left.
    fn change<Q: Flow, R>(&mut self, flow: &mut Q, change: impl FnOnce(&mut Q) -> R) -> (R, bool) {
        let before = flow.len();
        let result = change(flow);
        let after = flow.len();
        self.entries -= before - after;
        self.flows -= usize::from(after == 0);
        (result, after > 0)
    }
}

/// Queues that take turns. Every queue has one place in the order, and is not empty.
#[derive(Debug)]
struct Turns<Q> {
    queues: HashMap<u32, Q>,
    /// Ids of the queues. The first one has the next turn.
    order: VecDeque<u32>,
}

impl<Q> Turns<Q> {
    fn new() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns `id`, or the id of a queue that waits if there may be no more queues.
    fn find(&self, id: u32, is_full: bool) -> u32 {
        if !is_full || self.is_empty() || self.queues.contains_key(&id) {
            return id;
        }
        let start = id as usize % self.order.len();
        let candidates = self.order.range(start..).chain(self.order.range(..start));
        candidates.copied().find(|candidate| *candidate != UNKEYED).unwrap_or(id)
    }

    /// Returns the queue with this id. A new one has the last turn.
    fn enter(&mut self, id: u32, new: impl FnOnce() -> Q) -> &mut Q {
        self.queues.entry(id).or_insert_with(|| {
            self.order.push_back(id);
            new()
        })
    }

    /// Calls `take` with one queue after the other until it returns an entry, and with each once at
    /// most. `take` also returns whether the queue still waits.
    fn next<T>(&mut self, mut take: impl FnMut(&mut Q) -> (Option<T>, bool)) -> Option<T> {
        for _ in 0..self.order.len() {
            let id = self.order.pop_front()?;
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            let (entry, is_waiting) = take(queue);
            if is_waiting {
                self.order.push_back(id);
            } else {
                self.queues.remove(&id);
            }
            if entry.is_some() {
                return entry;
            }
        }
        None
    }

    /// Iterates in the order of turns.
    fn iter(&self) -> impl Iterator<Item = &Q> {
        self.order.iter().filter_map(|id| self.queues.get(id))
    }

    fn sum(&self, len: impl Fn(&Q) -> usize) -> usize {
        self.queues.values().map(len).sum()
    }

    /// Removes the queues for which `is_waiting` returns `false`.
    fn retain(&mut self, mut is_waiting: impl FnMut(&mut Q) -> bool) {
        let Self { queues, order } = self;
        order.retain(|id| {
            let keep = queues.get_mut(id).is_some_and(&mut is_waiting);
            if !keep {
                queues.remove(id);
            }
            keep
        });
    }

    /// Calls `cut` with the queues that have to become shorter, and their new lengths, such that at
    /// most `keep` entries are left. It returns whether the queue still waits.
    fn cut(&mut self, keep: usize, len: impl Fn(&Q) -> usize, mut cut: impl FnMut(&mut Q, usize) -> bool) {
        let lens: Vec<_> = self.iter().map(&len).collect();
        let (level, mut longer) = level(&lens, keep);
        self.retain(|queue| {
            let len = len(queue);
            let mut new_len = len.min(level);
            if len > level && longer > 0 {
                longer -= 1;
                new_len += 1;
            }
            new_len == len || cut(queue, new_len)
        });
    }
}

/// Returns the length to which longer queues are cut so that `keep` entries are left, and the
/// number of queues that may keep one more.
fn level(lens: &[usize], keep: usize) -> (usize, usize) {
    let kept = |level: usize| lens.iter().fold(0_usize, |sum, len| sum.saturating_add(*len.min(&level)));
    let (mut low, mut high) = (0, keep);
    while low < high {
        let middle = high - (high - low) / 2;
        if kept(middle) <= keep {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    (low, keep - kept(low))
}
