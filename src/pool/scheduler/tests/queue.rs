use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use crate::pool::{
    Priority,
    flows::Flow,
    scheduler::{
        Class, Codel, QueueItem, QueuePolicy,
        queue::{Lane, MAX_SHED, Queue},
    },
};

const TARGET: Duration = Duration::from_millis(10);
const INTERVAL: Duration = Duration::from_millis(100);
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

fn codel() -> QueuePolicy {
    Codel::new(TARGET, INTERVAL).into()
}

/// Durations that make every state likely: some within the target, some longer than the interval.
fn elapsed() -> impl Strategy<Value = Duration> {
    prop_oneof![8 => 0_u64..4, 3 => 4_u64..30, 1 => 30_u64..300].prop_map(Duration::from_millis)
}

/// Compares one lane with a plain list that applies the documented policy.
struct Model {
    lane: Lane<Call>,
    list: Vec<Call>,
    now: Instant,
    /// Last time at which the list was empty, or was picked from with its oldest call within the
    /// target.
    last_good: Instant,
    pushed: u32,
    removed: BTreeSet<u32>,
}

impl Model {
    fn new() -> Self {
        let now = Instant::now();
        let (lane, removed) = (Lane::new(codel()), BTreeSet::new());
        Self { lane, list: vec![], now, last_good: now, pushed: 0, removed }
    }

    fn push(&mut self) {
        let call = Call { id: self.pushed, queued_at: self.now };
        self.pushed += 1;
        if self.list.is_empty() {
            self.last_good = self.now;
        }
        self.list.push(call);
        self.lane.push(call);
    }

    fn age(&self, call: &Call) -> Duration {
        self.now - call.queued_at
    }

    fn pick(&mut self) -> Option<Call> {
        let mut shed = Vec::new();
        let picked = self.lane.pop(Some(self.now), &mut shed);
        let Some(oldest) = self.list.first() else {
            assert_eq!((picked, &*shed), (None, &[][..]));
            return None;
        };
        if self.age(oldest) <= TARGET {
            self.last_good = self.now;
        }
        let overloaded = self.now - self.last_good >= INTERVAL;
        assert!(overloaded || shed.is_empty(), "shed without an interval of overload");
        assert!(shed.len() <= MAX_SHED);
        let expected = if overloaded { self.list.pop() } else { Some(self.list.remove(0)) };
        assert_eq!(picked, expected);
        for call in &shed {
            assert!(self.age(call) > 2 * TARGET, "shed at {:?}", self.age(call));
            assert_eq!(self.list.remove(0), *call, "the oldest are shed first");
        }
        if overloaded && shed.len() < MAX_SHED {
            assert!(self.list.first().is_none_or(|oldest| self.age(oldest) <= 2 * TARGET), "not shed in time");
        }
        for call in shed.iter().chain(&picked) {
            assert!(self.removed.insert(call.id), "{} was removed twice", call.id);
        }
        picked
    }
}

proptest! {
    #[test]
    fn lane_is_fifo_until_overloaded_then_lifo_and_sheds(
        steps in prop::collection::vec((0_usize..4, elapsed(), 0_usize..3), 0..300),
        burst in 0_usize..200,
    ) {
        let mut model = Model::new();
        (0..burst).for_each(|_| model.push());
        for (pushes, elapsed, picks) in steps {
            (0..pushes).for_each(|_| model.push());
            model.now += elapsed;
            for _ in 0..picks {
                model.pick();
            }
            prop_assert_eq!(model.removed.len() + model.list.len(), model.pushed as usize, "a call is lost");
        }
        // The load ends. A few picks later the lane is first in, first out again.
        model.now += INTERVAL;
        while model.lane.len() > 0 {
            model.pick();
        }
        prop_assert_eq!(model.removed.len(), model.pushed as usize);
        (0..3).for_each(|_| model.push());
        model.now += TARGET;
        let first = model.pushed - 3;
        for id in first..model.pushed {
            prop_assert_eq!(model.pick().map(|call| call.id), Some(id));
        }
    }

    #[test]
    fn every_entry_is_removed_once_and_only_new_calls_are_shed(
        steps in prop::collection::vec((0_usize..3, any::<bool>(), elapsed(), 0_usize..3), 0..300),
    ) {
        let mut now = Instant::now();
        let mut queue = Queue::new(codel());
        let (mut pushed, mut removed, mut woken_ids) = (0, BTreeSet::new(), BTreeSet::new());
        let mut shed = Vec::new();
        let mut pick = |queue: &mut Queue<Call>, now: Instant, woken_ids: &BTreeSet<u32>| {
            let picked = queue.pop(Some(now), &mut shed);
            assert!(picked.is_some() || queue.is_empty() && shed.is_empty());
            for call in &shed {
                assert!(!woken_ids.contains(&call.id) && now - call.queued_at > 2 * TARGET);
            }
            for call in shed.drain(..).chain(picked) {
                assert!(removed.insert(call.id));
            }
            removed.len()
        };
        for (priority, woken, elapsed, picks) in steps {
            queue.push(Call { id: pushed, queued_at: now }, Class::of(PRIORITIES[priority], woken));
            if woken {
                woken_ids.insert(pushed);
            }
            pushed += 1;
            now += elapsed;
            for _ in 0..picks {
                let removed = pick(&mut queue, now, &woken_ids);
                prop_assert_eq!(removed + queue.len(), pushed as usize);
            }
        }
        let mut removed = 0;
        while !queue.is_empty() {
            removed = pick(&mut queue, now, &woken_ids);
        }
        prop_assert!(removed == 0 || removed == pushed as usize);
    }

    #[test]
    fn no_lane_is_passed_over_more_than_20_times(
        steps in prop::collection::vec((0_usize..3, 0_u32..24, 0_usize..4), 0..300),
    ) {
        let queued_at = Instant::now();
        let mut queue = Queue::new(QueuePolicy::Fifo);
        let (mut waiting, mut passed_over) = ([0_u32; 3], [0; 3]);
        for (lane, pushes, picks) in steps {
            for _ in 0..pushes {
                queue.push(Call { id: lane as u32, queued_at }, Class::of(PRIORITIES[lane], false));
            }
            waiting[lane] += pushes;
            for _ in 0..picks * 8 {
                let Some(Call { id, .. }) = queue.pop(None, &mut vec![]) else { break };
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
    let mut queue = Queue::new(QueuePolicy::Fifo);
    for priority in PRIORITIES {
        (0..42).for_each(|_| queue.push(Call { id: priority as u32, queued_at }, Class::of(priority, false)));
    }
    let picks: Vec<_> = (0..42).filter_map(|_| queue.pop(None, &mut vec![])).map(|call| call.id).collect();
    for cycle in picks.chunks(21) {
        let count = |priority: Priority| cycle.iter().filter(|id| **id == priority as u32).count();
        assert_eq!(PRIORITIES.map(count), [16, 4, 1]);
    }
    let normal: Vec<_> = (0..42).filter(|pick| picks[*pick] == Priority::Normal as u32).collect();
    assert!(normal.windows(2).all(|pair| pair[1] - pair[0] <= 7), "{normal:?}");
}

/// `Low` waits longest, so its lane is overloaded before the others are.
#[test]
fn low_is_shed_while_high_is_not() {
    let mut now = Instant::now();
    let mut queue = Queue::new(codel());
    let (mut low_shed, mut high) = (0, 0);
    for id in 0..400 {
        if id % 4 < 3 {
            queue.push(Call { id, queued_at: now }, Class::of(Priority::High, false));
        }
        queue.push(Call { id: 1000 + id, queued_at: now }, Class::of(Priority::Low, false));
        now += Duration::from_millis(1); // The capacity is one call per millisecond.
        let mut shed = Vec::new();
        high += u32::from(queue.pop(Some(now), &mut shed).is_some_and(|call| call.id < 1000));
        assert!(shed.iter().all(|call| call.id >= 1000));
        low_shed += shed.len();
    }
    assert!(low_shed > 200 && high == 300, "{low_shed} {high}");
}
