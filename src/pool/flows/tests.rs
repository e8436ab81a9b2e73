use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

type Lane = VecDeque<u32>;

/// A queue with the entries that were pushed, by group and key, in order of arrival. Group 0 has
/// the entries without a key.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<(u32, u32), VecDeque<u32>>,
    pushed: u32,
}

impl Model {
    fn groups(&self) -> BTreeSet<u32> {
        self.waiting.keys().map(|(group, _)| *group).collect()
    }

    fn keys(&self, group: u32) -> BTreeSet<u32> {
        self.waiting.keys().filter(|(of, _)| *of == group).map(|(_, key)| *key).collect()
    }

    fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }
}

struct Tested {
    flows: Flows<Lane>,
    unkeyed: Lane,
    model: Model,
}

impl Tested {
    fn new() -> Self {
        Self { flows: Flows::new(), unkeyed: Lane::new(), model: Model::default() }
    }

    fn push(&mut self, group: u32, key: u32) {
        let entry = self.model.pushed;
        self.model.pushed += 1;
        match group {
            0 => self.unkeyed.push_back(entry),
            _ => self.flows.push(CallKey::of_hashes(group, key), Lane::new, |lane| lane.push_back(entry)),
        }
        let key = if group == 0 { 0 } else { key };
        self.model.waiting.entry((group, key)).or_default().push_back(entry);
    }

    /// Removes an entry, and returns its group and key.
    fn pop(&mut self) -> Option<(u32, u32)> {
        let entry = self.flows.pop(&mut self.unkeyed, VecDeque::pop_front);
        let found = entry.map(|entry| {
            let mut firsts = self.model.waiting.iter().filter(|(_, entries)| entries.front() == Some(&entry));
            *firsts.next().expect("the entries of a key leave in order of arrival").0
        });
        match found {
            None => assert_eq!(self.model.len(), 0),
            Some(key) => self.remove(key),
        }
        self.check();
        found
    }

    fn remove(&mut self, key: (u32, u32)) {
        let entries = self.model.waiting.get_mut(&key).expect("the key waits");
        entries.pop_front();
        if entries.is_empty() {
            self.model.waiting.remove(&key);
        }
    }

    fn check(&self) {
        assert_eq!(self.flows.len() + self.unkeyed.len(), self.model.len());
        assert_eq!(self.flows.flows(), self.model.waiting.keys().filter(|(group, _)| *group != 0).count());
    }
}

/// Group and key of a push, or a number of pops. Key 0 of a group is a key without a group.
fn step() -> impl Strategy<Value = Result<(u32, u32, usize), usize>> {
    prop_oneof![
        (0_u32..6, 0_u32..4, 1_usize..5).prop_map(|(group, key, count)| {
            // A group has either one key that is the group, or keys that are not.
            let key = if group % 2 == 0 { 0 } else { key + 1 };
            Ok((group, key, count))
        }),
        (1_usize..6).prop_map(Err),
    ]
}

proptest! {
    /// Between two turns of a group that waits, and since it started to wait, every other group has
    /// at most one. The same is true for the keys of a group, in turns of the group.
    #[test]
    fn every_other_waiting_key_has_at_most_one_turn_in_between(steps in prop::collection::vec(step(), 0..300)) {
        let mut tested = Tested::new();
        let mut since_turn: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut since_turn_of_key: BTreeMap<(u32, u32), BTreeSet<u32>> = BTreeMap::new();
        for step in steps {
            match step {
                Ok((group, key, count)) => (0..count).for_each(|_| tested.push(group, key)),
                Err(count) => {
                    for _ in 0..count {
                        let (groups, model) = (tested.model.groups(), &tested.model);
                        let keys: BTreeMap<_, _> = groups.iter().map(|group| (*group, model.keys(*group))).collect();
                        let Some((group, key)) = tested.pop() else { break };
                        for other in groups.iter().filter(|other| **other != group) {
                            prop_assert!(since_turn.entry(*other).or_default().insert(group), "{other} waits for {group}");
                        }
                        since_turn.remove(&group);
                        for other in keys[&group].iter().filter(|other| **other != key) {
                            let passed = since_turn_of_key.entry((group, *other)).or_default();
                            prop_assert!(passed.insert(key), "{other} waits for {key} of {group}");
                        }
                        since_turn_of_key.remove(&(group, key));
                    }
                }
            }
        }
        while tested.pop().is_some() {}
        prop_assert!(tested.flows.groups.iter().all(|group| matches!(group, Group::Unkeyed)));
    }

    #[test]
    fn cut_shortens_the_longest_and_keeps_as_many_as_it_may(
        pushes in prop::collection::vec((0_u32..6, 0_u32..4, 1_usize..9), 0..40),
        keep in 0_usize..60,
    ) {
        let mut tested = Tested::new();
        for (group, key, count) in pushes {
            (0..count).for_each(|_| tested.push(group, if group % 2 == 0 { 0 } else { key + 1 }));
        }
        let before = tested.model.len();
        let len_of = |tested: &Tested, group: u32| -> usize {
            tested.model.waiting.iter().filter(|((of, _), _)| *of == group).map(|(_, entries)| entries.len()).sum()
        };
        let lens: BTreeMap<_, _> = tested.model.groups().into_iter().map(|group| (group, len_of(&tested, group))).collect();
        let mut removed = Vec::new();
        let Tested { flows, unkeyed, .. } = &mut tested;
        flows.cut(unkeyed, keep, VecDeque::len, |lane, len| removed.extend(lane.drain(..lane.len() - len)));
        prop_assert_eq!(removed.len(), before.saturating_sub(keep));
        for entry in removed {
            let key = *tested.model.waiting.iter().find(|(_, entries)| entries.front() == Some(&entry)).expect("the oldest").0;
            tested.remove(key);
        }
        tested.check();
        let longest = tested.model.groups().into_iter().map(|group| len_of(&tested, group)).max().unwrap_or(0);
        for (group, len) in lens {
            let left = len_of(&tested, group);
            prop_assert!(left == len || left + 1 >= longest, "{} of {} are left, others have {}", left, len, longest);
        }
        while tested.pop().is_some() {}
    }
}

#[test]
fn keys_beyond_the_maximum_share_flows_of_others() {
    let mut tested = Flows::<Lane>::new();
    let (mut unkeyed, keys) = (Lane::from([0]), 3 * MAX_FLOWS as u32);
    for key in 1..=keys {
        tested.push(CallKey::of_hashes(1 + key % 7, key), Lane::new, |lane| lane.push_back(key));
        tested.push(CallKey::of_hashes(1000 + key, 0), Lane::new, |lane| lane.push_back(keys + key));
        assert!(tested.flows() <= MAX_FLOWS);
    }
    let mut left: BTreeSet<_> = (0..=2 * keys).collect();
    while let Some(entry) = tested.pop(&mut unkeyed, VecDeque::pop_front) {
        assert!(left.remove(&entry));
    }
    assert!(left.is_empty());
    assert_eq!((tested.len(), tested.flows()), (0, 0));
    tested.shrink();
    assert_eq!((tested.groups.queues.capacity(), tested.groups.order.capacity()), (0, 0));
}

#[test]
fn group_of_a_thousand_keys_has_as_many_turns_as_a_single_key() {
    let mut tested = Flows::new();
    for key in 1..=1000 {
        tested.push(CallKey::of_hashes(1, key), Lane::new, |lane| lane.push_back(1));
        tested.push(CallKey::of_hashes(2, 0), Lane::new, |lane| lane.push_back(2));
    }
    let mut unkeyed = Lane::new();
    let turns: Vec<_> = (0..100).filter_map(|_| tested.pop(&mut unkeyed, VecDeque::pop_front)).collect();
    assert!(turns.chunks(2).all(|pair| pair.iter().sum::<u32>() == 3), "{turns:?}");
}
