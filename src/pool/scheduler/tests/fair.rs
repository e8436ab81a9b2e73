//! Order of calls with keys.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use proptest::prelude::*;
use tokio::time::Instant;

use crate::pool::{
    Priority,
    key::CallKey,
    scheduler::{
        Class, QueueItem,
        queue::{MAX_SHED, Queue},
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    /// 0: no key.
    group: u32,
    id: u32,
    queued_at: Instant,
    service: u32,
    is_cancelled: bool,
    is_exempt: bool,
}

impl Call {
    fn new(group: u32, id: u32) -> Self {
        Self { group, id, queued_at: Instant::now(), service: 1, is_cancelled: false, is_exempt: false }
    }
}

impl QueueItem for Call {
    fn queued_at(&self) -> Instant {
        self.queued_at
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    fn is_exempt(&self) -> bool {
        self.is_exempt
    }
}

fn class(group: u32, member: u32) -> Class {
    let key = (group > 0).then(|| CallKey::of_hashes(group, member));
    Class { key, ..Class::default() }
}

fn push(queue: &mut Queue<Call>, call: Call) {
    queue.push(call, class(call.group, 0));
}

fn pop(queue: &mut Queue<Call>) -> Option<Call> {
    queue.pop(&mut Vec::new())
}

const LONGEST: u32 = 20;

proptest! {
    /// On `threads` threads, the first waiting call of a key starts within
    /// (active keys x longest service time / threads) + one service time, whatever the others do.
    #[test]
    fn key_waits_for_at_most_one_call_of_each_other_key(
        threads in 1_u32..6,
        arrivals in prop::collection::vec((0_u32..8, 0_u32..4, 1_u32..=LONGEST, 0_u32..12, 1_usize..30), 1..80),
    ) {
        // Calls of all keys, sorted by arrival. Odd groups are split over many keys.
        let mut time = 0;
        let mut arrivals = arrivals.into_iter().flat_map(|(group, member, service, pause, count)| {
            time += pause;
            let member = if group % 2 == 0 { 0 } else { member + 1 };
            (0..count).map(move |_| (time, group, member, service)).collect::<Vec<_>>()
        }).collect::<Vec<_>>().into_iter().peekable();

        let mut queue = Queue::new();
        let mut ends = BinaryHeap::new();
        // Number of waiting calls by group, and the time since which the group waits for its turn.
        let (mut waiting, mut since) = (BTreeMap::<u32, usize>::new(), BTreeMap::<u32, (u32, usize)>::new());
        loop {
            let next_arrival = arrivals.peek().map(|(time, ..)| *time);
            let next_end = ends.peek().map(|Reverse(end)| *end);
            let Some(now) = next_arrival.into_iter().chain(next_end).min() else { break };
            while ends.peek() == Some(&Reverse(now)) {
                ends.pop();
            }
            while let Some((_, group, member, service)) = arrivals.next_if(|(time, ..)| *time == now) {
                queue.push(Call { service, ..Call::new(group, 0) }, class(group, member));
                *waiting.entry(group).or_default() += 1;
                let active = waiting.len();
                since.entry(group).or_insert((now, active));
                // Calls without a key get their turn when a call is picked, behind newer keys.
                since.entry(0).and_modify(|(_, before)| *before = active.max(*before));
            }
            while ends.len() < threads as usize {
                let Some(call) = pop(&mut queue) else { break };
                ends.push(Reverse(now + call.service));
                let (waits_since, active) = since.remove(&call.group).expect("the group waits");
                let bound = (active as u32 * LONGEST).div_ceil(threads) + LONGEST;
                prop_assert!(now - waits_since <= bound, "{} with {} active", now - waits_since, active);
                let left = waiting.get_mut(&call.group).expect("the group waits");
                *left -= 1;
                if *left == 0 {
                    waiting.remove(&call.group);
                } else {
                    since.insert(call.group, (now, waiting.len()));
                }
            }
        }
        prop_assert!(queue.is_empty() && waiting.is_empty());
    }

    #[test]
    fn every_call_with_a_key_is_removed_once(
        steps in prop::collection::vec((0_u32..5, 0_usize..3, any::<bool>(), any::<bool>(), 0_usize..3), 0..300),
    ) {
        let mut queue = Queue::new();
        let (mut removed, mut shed) = (BTreeSet::new(), Vec::new());
        let priorities = [Priority::High, Priority::Normal, Priority::Low];
        for (id, (group, priority, is_woken, is_cancelled, picks)) in (0..).zip(steps) {
            let call = Call { is_cancelled, ..Call::new(group, id) };
            queue.push(call, Class { priority: priorities[priority], is_woken, ..class(group, 0) });
            for _ in 0..picks {
                let picked = queue.pop(&mut shed);
                prop_assert!(picked.is_some() || queue.is_empty() && shed.is_empty());
                prop_assert!(shed.len() <= MAX_SHED);
                prop_assert!(shed.iter().all(|call| call.is_cancelled && call.group > 0 || call.group == 0));
                removed.extend(shed.drain(..).chain(picked).map(|call| call.id));
            }
            prop_assert_eq!(removed.len() + queue.len(), id as usize + 1);
        }
        let left = queue.len();
        prop_assert_eq!(queue.drain().count(), left);
        prop_assert!(queue.is_empty() && pop(&mut queue).is_none());
    }
}

#[test]
fn calls_without_a_key_take_turns_like_one_key() {
    let mut queue = Queue::new();
    for id in 0..30 {
        [0, 0, 0, 1, 2].into_iter().for_each(|group| push(&mut queue, Call::new(group, id)));
    }
    let turns: Vec<_> = (0..60).filter_map(|_| pop(&mut queue)).map(|call| call.group).collect();
    for turn in turns.chunks(3) {
        assert_eq!(turn.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&0, &1, &2]), "{turns:?}");
    }
}

#[test]
fn priorities_come_before_keys() {
    let mut queue = Queue::new();
    for id in 0..100 {
        let keyed = |group, priority| Class { priority, ..class(group, 0) };
        queue.push(Call::new(1, id), keyed(1, Priority::High));
        queue.push(Call::new(2, id), keyed(2, Priority::Normal));
        queue.push(Call::new(3, id), keyed(3, Priority::Low));
    }
    let picks: Vec<_> = (0..84).filter_map(|_| pop(&mut queue)).map(|call| call.group).collect();
    assert_eq!([1, 2, 3].map(|group| picks.iter().filter(|pick| **pick == group).count()), [64, 16, 4]);
}

#[test]
fn woken_calls_come_before_keys_whatever_their_own() {
    let mut queue = Queue::new();
    push(&mut queue, Call::new(1, 0));
    queue.push(Call::new(2, 1), Class { is_woken: true, ..class(2, 0) });
    assert_eq!(pop(&mut queue).map(|call| call.id), Some(1));
}

/// Their keys would otherwise wait one turn of all others for each call that a client gave up.
#[test]
fn cancelled_calls_use_no_turn() {
    let mut queue = Queue::new();
    for id in 0..50 {
        push(&mut queue, Call { is_cancelled: true, ..Call::new(1, id) });
        push(&mut queue, Call::new(2, id));
    }
    push(&mut queue, Call::new(1, 50));
    let mut shed = Vec::new();
    let picks: Vec<_> = (0..2).filter_map(|_| queue.pop(&mut shed)).map(|call| (call.group, call.id)).collect();
    assert!(picks.contains(&(1, 50)), "{picks:?}");
    assert_eq!(shed.len(), 50);
}

#[test]
fn excess_is_shed_from_the_key_with_the_most_calls() {
    let mut queue = Queue::new();
    (0..100).for_each(|id| push(&mut queue, Call::new(1, id)));
    (0..10).for_each(|id| push(&mut queue, Call::new(0, id)));
    push(&mut queue, Call::new(2, 0));
    let shed = queue.shed_to(4);
    assert_eq!((shed.len(), queue.len()), (107, 4));
    assert!(shed.iter().all(|call| call.group != 2));
    assert_eq!(shed.iter().find(|call| call.group == 1).map(|call| call.id), Some(0), "the oldest");
    let left: BTreeSet<_> = std::iter::from_fn(|| pop(&mut queue)).map(|call| call.group).collect();
    assert_eq!(left, BTreeSet::from([0, 1, 2]));
}

#[test]
fn exempt_calls_are_not_shed_and_are_no_excess() {
    let mut queue = Queue::new();
    for group in [0, 1, 2] {
        for id in 0..100 {
            push(&mut queue, Call { is_exempt: id % 2 == 0 || group == 2, ..Call::new(group, id) });
        }
    }
    let shed = queue.shed_to(4);
    assert_eq!((shed.len(), queue.len()), (96, 204));
    assert!(shed.iter().all(|call| !call.is_exempt));
    let left: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
    assert_eq!(left.iter().filter(|call| !call.is_exempt).map(|call| call.id).collect::<Vec<_>>(), [97, 97, 99, 99]);
    for group in [0, 1, 2] {
        let ids: Vec<_> = left.iter().filter(|call| call.group == group).map(|call| call.id).collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }
    assert_eq!(queue.shed_to(0), []);
}

#[test]
fn memory_of_a_flood_of_keys_is_freed() {
    let mut queue = Queue::new();
    (1..100_000).for_each(|group| push(&mut queue, Call::new(group, group)));
    assert_eq!(std::iter::from_fn(|| pop(&mut queue)).count(), 99_999);
    queue.shrink();
    assert!(queue.is_empty() && queue.oldest().is_none());
}

#[test]
fn woken_calls_of_keys_take_turns() {
    let mut queue = Queue::new();
    let mut push_woken = |group, id| queue.push(Call::new(group, id), Class { is_woken: true, ..class(group, 0) });
    (0..1000).for_each(|id| push_woken(1, id));
    push_woken(2, 0);
    push_woken(0, 0);
    push_woken(0, 1);
    let picked: Vec<_> = (0..6).map_while(|_| pop(&mut queue)).map(|call| (call.group, call.id)).collect();
    assert_eq!(picked, [(1, 0), (2, 0), (0, 0), (1, 1), (0, 1), (1, 2)]);
    assert_eq!(queue.len(), 997);
    assert_eq!((queue.drain().count(), queue.len()), (997, 0));
}

#[test]
fn woken_calls_with_a_key_leave_every_eighth_pick_to_new_calls() {
    let mut queue = Queue::new();
    (0..4).for_each(|id| push(&mut queue, Call::new(0, id)));
    (0..100).for_each(|id| queue.push(Call::new(1, id), Class { is_woken: true, ..class(1, 0) }));
    let picked: Vec<_> = (0..32).map_while(|_| pop(&mut queue)).collect();
    let new: Vec<_> = (0..).zip(picked).filter(|(_, call)| call.group == 0).map(|(pick, _)| pick).collect();
    assert_eq!(new, [7, 15, 23, 31]);
}
