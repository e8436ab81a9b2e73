use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
    num::NonZeroU32,
    sync::OnceLock,
};

/// Key of a call, hashed: calls with the same key share a part of their pool.
///
/// The hash has random keys, so that a client cannot choose a key that collides with that of
/// another one. It is the same in all pools of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CallKey {
    /// Hash of the group, or of a key without a group.
    top: NonZeroU32,
    /// Hash of the key within the group. 0: the key has no group.
    member: u32,
}

impl CallKey {
    /// Returns a key that is a group of its own.
    pub(crate) fn new(key: &impl Hash) -> Self {
        Self { top: nonzero(hash(key)), member: 0 }
    }

    /// Returns a key within a group.
    pub(crate) fn in_group(group: &impl Hash, key: &impl Hash) -> Self {
        Self { top: nonzero(hash(group)), member: nonzero(hash(key)).get() }
    }

    pub(super) fn top(self) -> NonZeroU32 {
        self.top
    }

    /// Returns the hash of the key within its group, if it has one.
    pub(super) fn member(self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.member)
    }

    /// Returns the group, as a key without a group.
    pub(super) fn group(self) -> Self {
        Self { member: 0, ..self }
    }
}

fn hash(value: &impl Hash) -> u32 {
    static STATE: OnceLock<RandomState> = OnceLock::new();
    let hash = STATE.get_or_init(RandomState::new).hash_one(value);
    (hash >> 32) as u32 // The upper half is as good as the lower one.
}

fn nonzero(hash: u32) -> NonZeroU32 {
    NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN)
}

#[cfg(all(test, not(tower_offload_loom)))]
impl CallKey {
    /// Returns a key with chosen hashes.
    pub(super) fn of_hashes(top: u32, member: u32) -> Self {
        Self { top: nonzero(top), member }
    }
}
