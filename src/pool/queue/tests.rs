use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    lane::{Lane, SHED_AT_MOST},
    lanes::{Lanes, Which},
    *,
};

const TARGET: Duration = Duration::from_millis(10);
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    id: u32,
    since: Instant,
}

impl Waits for Call {
    fn since(&self) -> Instant {
        self.since
    }
}

fn codel() -> QueuePolicy {
    Codel::new(TARGET, INTERVAL).into()
}

/// Time passes in steps that make every state likely: some within the target, some that exceed everything at once.
fn passing() -> impl Strategy<Value = Duration> {
    prop_oneof![8 => 0_u64..4, 3 => 4_u64..30, 1 => 30_u64..300].prop_map(Duration::from_millis)
}

/// One lane, and beside it a plain list that is looked at as the documentation says.
struct Model {
    lane: Lane<Call>,
    list: Vec<Call>,
    now: Instant,
    /// When the list was last seen empty, or at a pick with its oldest within the target.
    good: Instant,
    pushed: u32,
    left: BTreeSet<u32>,
}

impl Model {
    fn new() -> Self {
        let now = Instant::now();
        Self { lane: Lane::new(codel()), list: vec![], now, good: now, pushed: 0, left: BTreeSet::new() }
    }

    fn push(&mut self) {
        let call = Call { id: self.pushed, since: self.now };
        self.pushed += 1;
        if self.list.is_empty() {
            self.good = self.now;
        }
        self.list.push(call);
        self.lane.push(call);
    }

    fn age(&self, call: &Call) -> Duration {
        self.now - call.since
    }

    fn pick(&mut self) -> Option<Call> {
        let mut shed = Vec::new();
        let picked = self.lane.pop(Some(self.now), &mut shed);
        let Some(oldest) = self.list.first() else {
            assert_eq!((picked, &*shed), (None, &[][..]));
            return None;
        };
        if self.age(oldest) <= TARGET {
            self.good = self.now;
        }
        let overloaded = self.now - self.good >= INTERVAL;
        assert!(overloaded || shed.is_empty(), "shed without an interval of overload");
        assert!(shed.len() <= SHED_AT_MOST);
        let expected = if overloaded { self.list.pop() } else { Some(self.list.remove(0)) };
        assert_eq!(picked, expected);
        for call in &shed {
            assert!(self.age(call) > 2 * TARGET, "shed at {:?}", self.age(call));
            assert_eq!(self.list.remove(0), *call, "the oldest are shed first");
        }
        if overloaded && shed.len() < SHED_AT_MOST {
            assert!(self.list.first().is_none_or(|oldest| self.age(oldest) <= 2 * TARGET), "not shed in time");
        }
        for call in shed.iter().chain(&picked) {
            assert!(self.left.insert(call.id), "{} left twice", call.id);
        }
        picked
    }
}

proptest! {
    #[test]
    fn a_lane_goes_oldest_first_until_it_is_overloaded_then_newest_first_and_sheds(
        steps in prop::collection::vec((0_usize..4, passing(), 0_usize..3), 0..300),
        burst in 0_usize..200,
    ) {
        let mut model = Model::new();
        (0..burst).for_each(|_| model.push());
        for (pushes, passing, picks) in steps {
            (0..pushes).for_each(|_| model.push());
            model.now += passing;
            for _ in 0..picks {
                model.pick();
            }
            prop_assert_eq!(model.left.len() + model.list.len(), model.pushed as usize, "a call is lost");
        }
        // The load ends: whatever was, a few picks later all is as at first.
        model.now += INTERVAL;
        while model.lane.len() > 0 {
            model.pick();
        }
        prop_assert_eq!(model.left.len(), model.pushed as usize);
        (0..3).for_each(|_| model.push());
        model.now += TARGET;
        let first = model.pushed - 3;
        for id in first..model.pushed {
            prop_assert_eq!(model.pick().map(|call| call.id), Some(id));
        }
    }

    /// All kinds of jobs at once.
    #[test]
    fn every_job_leaves_once_and_only_new_calls_are_shed(
        steps in prop::collection::vec((any::<u8>(), any::<bool>(), passing(), 0_usize..3), 0..300),
    ) {
        let mut now = Instant::now();
        let mut jobs = Jobs::new(codel());
        let (mut pushed, mut left, mut spared) = (0, BTreeSet::new(), BTreeSet::new());
        let mut shed = Vec::new();
        let mut pick = |jobs: &mut Jobs<Call>, now: Instant, spared: &BTreeSet<u32>| {
            let had_release = jobs.has_release();
            let picked = jobs.pop(Some(now), &mut shed);
            assert!(picked.is_some() || jobs.is_empty() && shed.is_empty() && !had_release);
            for call in &shed {
                assert!(!spared.contains(&call.id) && now - call.since > 2 * TARGET);
            }
            for call in shed.drain(..).chain(picked) {
                assert!(left.insert(call.id));
            }
            left.len()
        };
        for (kind, resumed, passing, picks) in steps {
            let priority = [Priority::High, Priority::Low, Priority::Normal, Priority::Release][usize::from(kind % 4)];
            jobs.push(Call { id: pushed, since: now }, priority, resumed);
            if resumed || priority == Priority::Release {
                spared.insert(pushed);
            }
            pushed += 1;
            now += passing;
            for _ in 0..picks {
                let left = pick(&mut jobs, now, &spared);
                prop_assert_eq!(left + jobs.len(), pushed as usize);
            }
        }
        let mut left = 0;
        while !jobs.is_empty() {
            left = pick(&mut jobs, now, &spared);
        }
        prop_assert!(left == 0 || left == pushed as usize);
    }

    /// Whoever comes and goes: 20 picks of others, then it is one of this lane.
    #[test]
    fn no_lane_is_passed_over_more_than_20_times(
        steps in prop::collection::vec((0_usize..3, 0_u32..24, 0_usize..4), 0..300),
    ) {
        const ALL: [Which; 3] = [Which::High, Which::Low, Which::Normal];
        let since = Instant::now();
        let mut lanes = Lanes::new(QueuePolicy::Fifo);
        let (mut waiting, mut passed) = ([0_u32; 3], [0; 3]);
        for (lane, pushes, picks) in steps {
            for _ in 0..pushes {
                lanes.push(Call { id: lane as u32, since }, ALL[lane]);
            }
            waiting[lane] += pushes;
            for _ in 0..picks * 8 {
                let Some(Call { id, .. }) = lanes.pop(None, &mut vec![]) else { break };
                waiting[id as usize] -= 1;
                for lane in 0..3 {
                    let over = waiting[lane] > 0 && lane != id as usize;
                    passed[lane] = if over { passed[lane] + 1 } else { 0 };
                    prop_assert!(passed[lane] <= 20, "lane {:?}", ALL[lane]);
                }
            }
            prop_assert_eq!(lanes.len(), waiting.iter().sum::<u32>() as usize);
        }
    }
}

#[test]
fn high_normal_and_low_share_the_picks_16_to_4_to_1_evenly_spread() {
    let since = Instant::now();
    let mut lanes = Lanes::new(QueuePolicy::Fifo);
    for which in [Which::High, Which::Normal, Which::Low] {
        (0..42).for_each(|_| lanes.push(Call { id: which as u32, since }, which));
    }
    let picks: Vec<_> = (0..42).filter_map(|_| lanes.pop(None, &mut vec![])).map(|call| call.id).collect();
    for cycle in picks.chunks(21) {
        let count = |which: Which| cycle.iter().filter(|id| **id == which as u32).count();
        assert_eq!((count(Which::High), count(Which::Normal), count(Which::Low)), (16, 4, 1));
    }
    let normal: Vec<_> = (0..42).filter(|pick| picks[*pick] == Which::Normal as u32).collect();
    assert!(normal.windows(2).all(|pair| pair[1] - pair[0] <= 7), "{normal:?}");
}

/// Low waits longest, so its lane is the first that is overloaded, while the others are not.
#[test]
fn low_is_shed_while_high_is_not() {
    let mut now = Instant::now();
    let mut jobs = Jobs::new(codel());
    let (mut low_shed, mut high) = (0, 0);
    for id in 0..400 {
        if id % 4 < 3 {
            jobs.push(Call { id, since: now }, Priority::High, false);
        }
        jobs.push(Call { id: 1000 + id, since: now }, Priority::Low, false);
        now += Duration::from_millis(1); // capacity: one call a millisecond
        let mut shed = Vec::new();
        high += u32::from(jobs.pop(Some(now), &mut shed).is_some_and(|call| call.id < 1000));
        assert!(shed.iter().all(|call| call.id >= 1000));
        low_shed += shed.len();
    }
    assert!(low_shed > 200 && high == 300, "{low_shed} {high}");
}

/// Release goes first; but neither a release call that wakes itself for ever nor another such call starves anybody.
#[test]
fn woken_release_calls_leave_two_picks_of_eight_to_others() {
    let since = Instant::now();
    let call = |id| Call { id, since };
    let mut jobs = Jobs::new(QueuePolicy::Fifo);
    for id in 0..20 {
        jobs.push(call(id), Priority::Normal, false);
        jobs.push(call(100 + id), Priority::Normal, true);
    }
    let mut picked = Vec::new();
    for _ in 0..16 {
        jobs.push(call(1000), Priority::Release, true);
        picked.extend(jobs.pop(None, &mut vec![]).map(|call| call.id));
    }
    let woken = 1000;
    let eight = [woken, woken, woken, 100, woken, woken, woken, 0];
    assert_eq!(picked[..8], eight);
    assert_eq!((picked[11], picked[15]), (101, 1));
    // New ones go before all of that.
    for id in 2000..2010 {
        jobs.push(call(id), Priority::Release, false);
    }
    for id in 2000..2010 {
        assert_eq!(jobs.pop(None, &mut vec![]), Some(call(id)));
    }
}
