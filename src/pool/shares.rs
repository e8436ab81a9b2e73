use std::collections::HashMap;

use super::{
    key::CallKey,
    permits::{PermitKind, Permits},
};

/// Number of permits in use by each key, and the share of a limit that a key may use. Pure: no
/// locks.
///
/// A key, and the group of a key, that already has as many permits as are left gets no more. One
/// that has none is therefore refused only if no permit is left at all. If `n` keys acquire as many
/// permits as they can get, each has `1 / (n + 1)` of the limit, and as many are left for others.
/// (This is the dynamic threshold of Choudhury and Hahne, "Dynamic Queue Length Thresholds for
/// Shared-Memory Packet Switches", 1998.)
///
/// Only keys and groups with permits are stored.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    in_use: HashMap<CallKey, Permits>,
    all: Permits,
}

impl Shares {
    /// Returns `true` if `key` may have one more permit while `left` permits are left.
    pub(crate) fn has_room(&self, key: CallKey, left: usize) -> bool {
        self.has_room_for(key, left, Permits::total)
    }

    /// Like `has_room`, for the limited permits alone.
    pub(crate) fn has_limited_room(&self, key: CallKey, left: usize) -> bool {
        self.has_room_for(key, left, Permits::limited)
    }

    fn has_room_for(&self, key: CallKey, left: usize, count: impl Fn(Permits) -> usize) -> bool {
        let of_group = count(self.in_use(key.group()));
        let Some(left_for_group) = left.checked_sub(of_group).filter(|left| *left > 0) else { return false };
        key.member().is_none() || count(self.in_use(key)) < left_for_group
    }

    /// Returns `true` if the group has no limited permit.
    pub(crate) fn has_none(&self, group: CallKey) -> bool {
        self.in_use(group).limited() == 0
    }

    /// Returns the permits of all keys.
    pub(crate) fn all(&self) -> Permits {
        self.all
    }

    /// Counts a permit of `key`.
    pub(crate) fn add(&mut self, key: CallKey, kind: PermitKind) {
        self.all += kind;
        *self.in_use.entry(key.group()).or_default() += kind;
        if key.member().is_some() {
            *self.in_use.entry(key).or_default() += kind;
        }
    }

    /// Stops counting a permit of `key`.
    pub(crate) fn remove(&mut self, key: CallKey, kind: PermitKind) {
        self.all -= kind;
        self.remove_one(key.group(), kind);
        if key.member().is_some() {
            self.remove_one(key, kind);
        }
    }

    fn in_use(&self, key: CallKey) -> Permits {
        self.in_use.get(&key).copied().unwrap_or_default()
    }

    fn remove_one(&mut self, key: CallKey, kind: PermitKind) {
        if let Some(in_use) = self.in_use.get_mut(&key) {
            *in_use -= kind;
            if in_use.is_none() {
                self.in_use.remove(&key);
                self.shrink();
            }
        }
    }

    /// Frees memory that a flood of keys has left.
    fn shrink(&mut self) {
        if self.in_use.is_empty() && self.in_use.capacity() > MAX_IDLE_CAPACITY {
            self.in_use = HashMap::new();
        }
    }
}

/// Capacity that an empty table keeps.
const MAX_IDLE_CAPACITY: usize = 64;

#[cfg(all(test, not(tower_offload_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64;
    const LIMITED: PermitKind = PermitKind::Limited;

    fn total(held: &[CallKey]) -> usize {
        LIMIT - held.len()
    }

    proptest! {
        #[test]
        fn key_without_a_permit_is_refused_only_at_the_limit(
            steps in prop::collection::vec((1_u32..5, 0_u32..4, any::<bool>(), any::<prop::sample::Index>()), 0..400),
        ) {
            let (mut shares, mut held) = (Shares::default(), Vec::new());
            for (top, member, acquires, index) in steps {
                let key = CallKey::of_hashes(top, member);
                let left = total(&held);
                if acquires {
                    let has_none = !held.iter().any(|other: &CallKey| other.group() == key.group());
                    let has_room = shares.has_room(key, left);
                    prop_assert!(has_room || !has_none || left == 0);
                    prop_assert!(!has_room || left > 0);
                    if has_room {
                        shares.add(key, LIMITED);
                        held.push(key);
                    }
                } else if !held.is_empty() {
                    shares.remove(held.swap_remove(index.index(held.len())), LIMITED);
                }
                for key in &held {
                    let count = held.iter().filter(|other| *other == key).count();
                    prop_assert!(key.member().is_none() || shares.in_use(*key).total() == count);
                }
            }
            held.drain(..).for_each(|key| shares.remove(key, LIMITED));
            prop_assert!(shares.in_use.is_empty() && shares.all().is_none());
        }
    }

    #[test]
    fn greedy_keys_leave_as_much_as_each_of_them_has() {
        for keys in [1_usize, 3, 7] {
            let (mut shares, mut left) = (Shares::default(), LIMIT);
            for round in 0..LIMIT * keys {
                let key = CallKey::of_hashes(1 + (round % keys) as u32, 0);
                if shares.has_room(key, left) {
                    shares.add(key, LIMITED);
                    left -= 1;
                }
            }
            assert_eq!(left, LIMIT / (keys + 1), "{keys} keys");
        }
    }

    #[test]
    fn a_thousand_keys_of_one_group_get_the_share_of_one_key() {
        let (mut shares, mut left) = (Shares::default(), LIMIT);
        for member in 1..=1000 {
            let key = CallKey::of_hashes(1, member);
            if shares.has_room(key, left) {
                shares.add(key, LIMITED);
                left -= 1;
            }
        }
        assert_eq!(left, LIMIT / 2);
        assert!(shares.has_room(CallKey::of_hashes(2, 0), left));
    }

    #[test]
    fn key_leaves_room_for_others_of_its_group() {
        let (mut shares, mut left) = (Shares::default(), LIMIT);
        let (greedy, quiet) = (CallKey::of_hashes(1, 1), CallKey::of_hashes(1, 2));
        while shares.has_room(greedy, left) {
            shares.add(greedy, LIMITED);
            left -= 1;
        }
        assert_eq!(left, LIMIT - 22, "a third of the limit");
        assert!(shares.has_room(quiet, left));
    }

    #[test]
    fn flood_of_keys_leaves_no_memory() {
        let mut shares = Shares::default();
        let keys = || (1..100_000).map(|top| CallKey::of_hashes(top, 0));
        keys().for_each(|key| shares.add(key, LIMITED));
        keys().for_each(|key| shares.remove(key, LIMITED));
        assert!(shares.in_use.capacity() <= MAX_IDLE_CAPACITY);
    }
}
