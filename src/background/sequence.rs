use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::OnceLock,
};

/// Key of a sequence, hashed: it takes 8 bytes, however long the key of the user is.
///
/// The hash has random keys, so that a client cannot choose a key that collides with that of
/// another one. Two keys that collide nevertheless are one sequence, which delays their tasks and
/// breaks no order. It is the same in all backgrounds of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SequenceKey(u64);

impl SequenceKey {
    pub(crate) fn new(key: &impl Hash) -> Self {
        static STATE: OnceLock<RandomState> = OnceLock::new();
        Self(STATE.get_or_init(RandomState::new).hash_one(key))
    }

    /// Returns the key with this hash.
    #[cfg(all(test, not(tower_offload_loom)))]
    pub(super) fn of_hash(hash: u64) -> Self {
        Self(hash)
    }
}

/// The sequences that have tasks, and work that waits for an earlier task of its sequence. Pure:
/// the work `W` is stored and returned, never inspected.
///
/// The head of a sequence is its one task that waits for a run permit or has one. The state stores
/// the work of heads; the work of the tasks behind them is here.
#[derive(Debug)]
pub(super) struct Sequences<W> {
    /// A sequence is stored while it has members, so there are at most as many as admitted tasks.
    sequences: BTreeMap<SequenceKey, Sequence<W>>,
    /// The sum of the lengths of all [`Sequence::waiting`].
    waiting: usize,
}

#[derive(Debug)]
struct Sequence<W> {
    /// The number of admitted tasks, at least 1. Those without work are counted too.
    members: usize,
    /// `true` while one member is the head. If it is `false`, `waiting` is empty: a task that gets
    /// work becomes the head at once, and so does the next one in `waiting` when the head ends.
    has_head: bool,
    /// Work of the members behind the head, in the order of its submission: by its number, with the
    /// id of its task.
    waiting: BTreeMap<u64, (u64, W)>,
}

impl<W> Sequences<W> {
    pub(super) fn new() -> Self {
        Self { sequences: BTreeMap::new(), waiting: 0 }
    }

    /// Returns the number of tasks that wait for an earlier task of their sequence.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the number of admitted tasks of a sequence.
    pub(super) fn members(&self, key: SequenceKey) -> usize {
        self.sequences.get(&key).map_or(0, |sequence| sequence.members)
    }

    /// Adds a task without work.
    pub(super) fn join(&mut self, key: SequenceKey) {
        let new = || Sequence { members: 0, has_head: false, waiting: BTreeMap::new() };
        self.sequences.entry(key).or_insert_with(new).members += 1;
    }

    /// Removes a task that has no work here and is not the head.
    pub(super) fn leave(&mut self, key: SequenceKey) {
        let Some(sequence) = self.sequences.get_mut(&key) else { return };
        sequence.members -= 1;
        if sequence.members == 0 {
            self.sequences.remove(&key);
        }
    }

    /// Adds the work of a member. Returns it if the member is the head now.
    pub(super) fn push(&mut self, key: SequenceKey, number: u64, task: u64, work: W) -> Option<W> {
        let Some(sequence) = self.sequences.get_mut(&key) else { return Some(work) };
        if sequence.has_head {
            sequence.waiting.insert(number, (task, work));
            self.waiting += 1;
            None
        } else {
            sequence.has_head = true;
            Some(work)
        }
    }

    /// Removes the head. Returns the number, the task and the work of the next one.
    pub(super) fn advance(&mut self, key: SequenceKey) -> Option<(u64, (u64, W))> {
        let sequence = self.sequences.get_mut(&key)?;
        let next = sequence.waiting.pop_first();
        sequence.has_head = next.is_some();
        self.waiting -= usize::from(next.is_some());
        next
    }

    /// Removes work that waits behind the head.
    pub(super) fn remove(&mut self, key: SequenceKey, number: u64) -> Option<W> {
        let (_, work) = self.sequences.get_mut(&key)?.waiting.remove(&number)?;
        self.waiting -= 1;
        Some(work)
    }

    /// Removes all work that waits behind heads.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = (u64, (u64, W))> {
        self.waiting = 0;
        self.sequences.values_mut().flat_map(|sequence| std::mem::take(&mut sequence.waiting))
    }
}
