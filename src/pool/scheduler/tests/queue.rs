use std::collections::BTreeSet;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::pool::{
    Priority,
    scheduler::{Class, QueueItem, queue::Queue},
};

const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    id: u32,
    queued_at: Instant,
}

impl QueueItem for Call {
    fn queued_at(&self) -> Instant {
        self.queued_at
    }
}

proptest! {
    #[test]
    fn every_entry_is_removed_once_and_a_lane_is_first_in_first_out(
        steps in prop::collection::vec((0_usize..3, any::<bool>(), 0_usize..3), 0..300),
    ) {
        let queued_at = Instant::now();
        let mut queue = Queue::new();
        let (mut lanes, mut pushed, mut removed) = (vec![], 0, BTreeSet::new());
        // The last entry that was picked from each lane.
        let mut last = [None; 4];
        let mut pick = |queue: &mut Queue<Call>, lanes: &[usize]| {
            let picked = queue.pop(&mut vec![]);
            assert!(picked.is_some() || queue.is_empty());
            if let Some(Call { id, .. }) = picked {
                assert!(removed.insert(id));
                let last = &mut last[lanes[id as usize]];
                assert!(last.replace(id).is_none_or(|last| last < id));
            }
            removed.len()
        };
        for (priority, woken, picks) in steps {
            queue.push(Call { id: pushed, queued_at }, Class::of(PRIORITIES[priority], woken));
            lanes.push(if woken { 3 } else { priority });
            pushed += 1;
            for _ in 0..picks {
                let removed = pick(&mut queue, &lanes);
                prop_assert_eq!(removed + queue.len(), pushed as usize);
            }
        }
        while !queue.is_empty() {
            pick(&mut queue, &lanes);
        }
        prop_assert_eq!(pick(&mut queue, &lanes), pushed as usize);
    }

    #[test]
    fn no_lane_is_passed_over_more_than_20_times(
        steps in prop::collection::vec((0_usize..3, 0_u32..24, 0_usize..4), 0..300),
    ) {
        let queued_at = Instant::now();
        let mut queue = Queue::new();
        let (mut waiting, mut passed_over) = ([0_u32; 3], [0; 3]);
        for (lane, pushes, picks) in steps {
            for _ in 0..pushes {
                queue.push(Call { id: lane as u32, queued_at }, Class::of(PRIORITIES[lane], false));
            }
            waiting[lane] += pushes;
            for _ in 0..picks * 8 {
                let Some(Call { id, .. }) = queue.pop(&mut vec![]) else { break };
                waiting[id as usize] -= 1;
                for lane in 0..3 {
                    let is_passed_over = waiting[lane] > 0 && lane != id as usize;
                    passed_over[lane] = if is_passed_over { passed_over[lane] + 1 } else { 0 };
                    prop_assert!(passed_over[lane] <= 20, "{:?}", PRIORITIES[lane]);
                }
            }
            prop_assert_eq!(queue.len(), waiting.iter().sum::<u32>() as usize);
        }
    }
}

#[test]
fn high_normal_and_low_share_picks_16_to_4_to_1() {
    let queued_at = Instant::now();
    let mut queue = Queue::new();
    for priority in PRIORITIES {
        (0..42).for_each(|_| queue.push(Call { id: priority as u32, queued_at }, Class::of(priority, false)));
    }
    let picks: Vec<_> = (0..42).filter_map(|_| queue.pop(&mut vec![])).map(|call| call.id).collect();
    for cycle in picks.chunks(21) {
        let count = |priority: Priority| cycle.iter().filter(|id| **id == priority as u32).count();
        assert_eq!(PRIORITIES.map(count), [16, 4, 1]);
    }
    let normal: Vec<_> = (0..42).filter(|pick| picks[*pick] == Priority::Normal as u32).collect();
    assert!(normal.windows(2).all(|pair| pair[1] - pair[0] <= 7), "{normal:?}");
}
