use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

impl Waits for u32 {
    fn since(&self) -> Instant {
        Instant::now()
    }
}

impl Waits for &str {
    fn since(&self) -> Instant {
        Instant::now()
    }
}

fn limits(min: usize, max: usize, reserved: usize) -> Limits {
    Limits { min, max, reserved }
}

/// First in, first out: nothing is shed.
fn next<T: Waits, S>(roster: &mut Roster<T, S>, from: From, seat: impl FnOnce() -> S) -> (Next<T>, Ask<S>) {
    roster.next(from, true, None, &mut Vec::new(), seat)
}

/// A crew in slow motion: which threads exist and what each is doing, moved step by step in whatever order proptest
/// chooses.
struct Model {
    roster: Roster<u32, u32>,
    pushed: BTreeSet<u32>,
    taken: BTreeSet<u32>,
    /// Asked for, not yet running.
    spawning: usize,
    /// Woken, not yet running.
    woken: usize,
    /// Woken because the crew closes, not yet running.
    closing: usize,
    searching: usize,
    busy: usize,
    reserved: Reserves,
    /// The seats of those that sleep.
    asleep: BTreeSet<u32>,
    seats: u32,
    max: usize,
    max_reserved: usize,
    closed: bool,
    failed: bool,
}

/// What the reserved threads are doing.
#[derive(Default)]
struct Reserves {
    spawning: usize,
    woken: usize,
    closing: usize,
    busy: usize,
    asleep: BTreeSet<u32>,
}

/// Release calls are numbered from here on.
const RELEASE: u32 = 1_000_000;

#[derive(Debug, Clone)]
enum Step {
    Arrive,
    Close,
    FailToSpawn,
    FailToSpawnReserved,
    Finish,
    Found,
    Halt,
    Push { release: bool, resumed: bool },
    ReservedArrive,
    ReservedFinish,
    ReservedTimeOut,
    ReservedWakeUp,
    TimeOut,
    WakeUp,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => any::<(bool, bool)>().prop_map(|(release, resumed)| Step::Push { release, resumed }),
        3 => Just(Step::ReservedArrive),
        3 => Just(Step::ReservedFinish),
        1 => Just(Step::ReservedTimeOut),
        3 => Just(Step::ReservedWakeUp),
        1 => Just(Step::FailToSpawnReserved),
        4 => Just(Step::Arrive),
        6 => Just(Step::Finish),
        6 => Just(Step::Found),
        6 => Just(Step::WakeUp),
        3 => Just(Step::TimeOut),
        1 => Just(Step::FailToSpawn),
        1 => Just(Step::Close),
        1 => Just(Step::Halt),
    ]
}

impl Model {
    fn new(min: usize, max: usize, max_reserved: usize) -> Self {
        Self {
            roster: Roster::new(limits(min, max, max_reserved), QueuePolicy::Fifo),
            pushed: BTreeSet::new(),
            taken: BTreeSet::new(),
            spawning: 0,
            woken: 0,
            closing: 0,
            searching: 0,
            busy: 0,
            reserved: Reserves::default(),
            asleep: BTreeSet::new(),
            seats: 0,
            max,
            max_reserved,
            closed: false,
            failed: false,
        }
    }

    fn obey(&mut self, ask: Ask<u32>) {
        match ask {
            Ask::Nothing => {}
            Ask::Spawn => self.spawning += 1,
            Ask::SpawnReserved => self.reserved.spawning += 1,
            Ask::Wake(seat) if self.reserved.asleep.remove(&seat) => self.reserved.woken += 1,
            Ask::Wake(seat) => {
                assert!(self.asleep.remove(&seat), "a wake for nobody");
                self.woken += 1;
            }
        }
    }

    fn take(&mut self, item: u32) {
        assert!(self.taken.insert(item), "job {item} came twice");
    }

    fn next(&mut self, from: From) {
        let (seats, asleep) = (&mut self.seats, &mut self.asleep);
        let (next, ask) = next(&mut self.roster, from, || {
            *seats += 1;
            asleep.insert(*seats);
            *seats
        });
        match next {
            Next::Run(item) => {
                self.take(item);
                self.busy += 1;
            }
            Next::Search => self.searching += 1,
            Next::Sleep => {}
            Next::Exit => assert!(self.closed, "a thread left though it was to stay"),
        }
        self.obey(ask);
    }

    fn next_reserved(&mut self, from: From) {
        let (seats, asleep) = (&mut self.seats, &mut self.reserved.asleep);
        let (next, ask) = self.roster.next_reserved(from, true, || {
            *seats += 1;
            asleep.insert(*seats);
            *seats
        });
        match next {
            Next::Run(item) => {
                assert!(item >= RELEASE, "a reserved thread runs release calls only");
                self.take(item);
                self.reserved.busy += 1;
            }
            Next::Search => unreachable!("a reserved thread does not"),
            Next::Sleep => {}
            Next::Exit => assert!(self.closed, "a thread left though it was to stay"),
        }
        self.obey(ask);
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Push { release, resumed } => {
                let priority = if *release { Priority::Release } else { Priority::Normal };
                let item = self.pushed.len() as u32 + if *release { RELEASE } else { 0 };
                self.pushed.insert(item);
                let ask = self.roster.push(item, priority, *resumed);
                self.obey(ask);
            }
            Step::ReservedArrive if self.reserved.spawning > 0 => {
                self.reserved.spawning -= 1;
                self.next_reserved(From::Coming);
            }
            Step::ReservedWakeUp if self.reserved.woken > 0 => {
                self.reserved.woken -= 1;
                self.next_reserved(From::Coming);
            }
            Step::ReservedWakeUp if self.reserved.closing > 0 => {
                self.reserved.closing -= 1;
                self.next_reserved(From::Busy);
            }
            Step::ReservedFinish if self.reserved.busy > 0 => {
                self.reserved.busy -= 1;
                self.next_reserved(From::Busy);
            }
            Step::ReservedTimeOut => {
                if let Some(seat) = self.reserved.asleep.pop_first() {
                    assert!(self.roster.timed_out(&seat));
                }
            }
            Step::FailToSpawnReserved if self.reserved.spawning > 0 => {
                self.failed = true;
                self.reserved.spawning -= 1;
                self.roster.lost_reserved(From::Coming);
                let (jobs, ask) = self.roster.make_up();
                for item in jobs {
                    self.take(item);
                }
                self.obey(ask);
            }
            Step::Arrive if self.spawning > 0 => {
                self.spawning -= 1;
                self.next(From::Coming);
            }
            Step::WakeUp if self.woken > 0 => {
                self.woken -= 1;
                self.next(From::Coming);
            }
            Step::WakeUp if self.closing > 0 => {
                self.closing -= 1;
                self.next(From::Busy);
            }
            Step::Found if self.searching > 0 => {
                self.searching -= 1;
                self.next(From::Searching);
            }
            Step::Finish if self.busy > 0 => {
                self.busy -= 1;
                self.next(From::Busy);
            }
            Step::TimeOut => {
                if let Some(&seat) = self.asleep.first() {
                    if self.roster.timed_out(&seat) {
                        self.asleep.remove(&seat);
                    }
                }
            }
            Step::FailToSpawn if self.spawning > 0 => {
                self.failed = true;
                self.spawning -= 1;
                self.roster.lost(From::Coming);
                let (jobs, ask) = self.roster.make_up();
                for item in jobs {
                    self.take(item);
                }
                self.obey(ask);
            }
            Step::Close => self.close(),
            Step::Halt => {
                self.close();
                self.max += usize::from(!self.roster.halted);
                let ask = self.roster.halt();
                self.obey(ask);
            }
            _ => {}
        }
    }

    fn close(&mut self) {
        self.closed = true;
        for seat in self.roster.close() {
            if self.reserved.asleep.remove(&seat) {
                self.reserved.closing += 1;
            } else {
                assert!(self.asleep.remove(&seat));
                self.closing += 1;
            }
        }
    }

    fn check(&self) {
        let threads = self.spawning + self.woken + self.closing + self.searching + self.busy + self.asleep.len();
        let Reserves { spawning, woken, closing, busy, asleep } = &self.reserved;
        let reserved = spawning + woken + closing + busy + asleep.len();
        assert_eq!(self.roster.threads(), threads + reserved);
        assert!(threads <= self.max && self.searching <= 1 && self.spawning + self.woken <= 1);
        assert!(reserved <= self.max_reserved && spawning + woken <= 1);
        assert_eq!(self.roster.coming, self.spawning + self.woken == 1);
        assert_eq!(self.roster.reserved.coming, spawning + woken == 1);
        let ordinary = self.pushed.iter().any(|item| *item < RELEASE && !self.taken.contains(item));
        let release = self.pushed.iter().any(|item| *item >= RELEASE && !self.taken.contains(item));
        assert_eq!((ordinary || release, release), (!self.roster.is_empty(), self.roster.jobs.has_release()));
        if release {
            let coming = self.spawning + self.woken + self.searching + spawning + woken > 0;
            let all_busy = self.busy + self.closing == self.max && busy + closing == self.max_reserved;
            let failed = self.failed && self.busy + self.closing + busy + closing > 0;
            assert!(
                coming || all_busy || failed,
                "a release call waits, and no thread comes though there might be one"
            );
        }
        if ordinary {
            let coming = self.spawning + self.woken + self.searching > 0;
            // A thread that could not be had is not asked for again before the next change.
            let all_busy = self.busy + self.closing == self.max || self.failed && self.busy + self.closing > 0;
            assert!(coming || all_busy, "a job waits, and no thread comes though there might be one");
        }
    }

    /// Lets every thread go on until all of them sleep or have ended.
    fn settle(&mut self) {
        let reserved = |it: &Reserves| it.spawning + it.woken + it.closing + it.busy;
        while self.spawning + self.woken + self.closing + self.searching + self.busy + reserved(&self.reserved) > 0 {
            let reserved = [Step::ReservedArrive, Step::ReservedFinish, Step::ReservedWakeUp];
            for step in [Step::Arrive, Step::Finish, Step::Found, Step::WakeUp].into_iter().chain(reserved) {
                self.apply(&step);
                self.check();
            }
        }
    }
}

proptest! {
    #[test]
    fn every_job_comes_out_once_and_no_job_waits_for_a_thread_that_sleeps(
        (max, min) in (1_usize..5).prop_flat_map(|max| (Just(max), 0..=max)),
        max_reserved in 0_usize..3,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut model = Model::new(min, max, max_reserved);
        for step in &steps {
            model.apply(step);
            model.check();
        }
        model.settle();
        prop_assert_eq!(&model.taken, &model.pushed);
        prop_assert!(!model.closed || model.roster.threads() == 0);
    }

    /// `blocking(n)` must not leave a call behind one that blocks: every thread that comes asks for the next.
    #[test]
    fn threads_come_one_after_the_other_until_every_job_has_one(max in 1_usize..6, jobs in 0_usize..12) {
        let mut model = Model::new(0, max, 2);
        for _ in 0..jobs {
            model.apply(&Step::Push { release: false, resumed: false });
        }
        for _ in 0..max {
            model.apply(&Step::Arrive); // and none of them ever finishes
        }
        prop_assert_eq!(model.busy, jobs.min(max));
        prop_assert_eq!(model.reserved.spawning, 0);
    }

    /// What a release call would free is held by the calls on all threads: so it must not wait for any of them.
    #[test]
    fn release_calls_get_the_reserved_threads_when_all_others_are_blocked(
        max in 1_usize..4, max_reserved in 0_usize..3, waiting in 0_usize..5, releases in 1_usize..5,
    ) {
        let mut model = Model::new(0, max, max_reserved);
        for _ in 0..max + waiting {
            model.apply(&Step::Push { release: false, resumed: false });
        }
        (0..max).for_each(|_| model.apply(&Step::Arrive)); // and none of them ever finishes
        prop_assert_eq!(model.busy, max);
        for _ in 0..releases {
            model.apply(&Step::Push { release: true, resumed: false });
            model.check();
        }
        (0..max_reserved).for_each(|_| model.apply(&Step::ReservedArrive));
        prop_assert_eq!(model.reserved.busy, releases.min(max_reserved));
    }
}

#[test]
fn woken_calls_go_first_and_every_eighth_pick_is_a_new_one() {
    let mut roster = Roster::<u32, ()>::new(limits(1, 1, 0), QueuePolicy::Fifo);
    for number in 0..4 {
        let _ = roster.push(number, Priority::Normal, false);
    }
    let mut picked = Vec::new();
    for number in 100..132 {
        let _ = roster.push(number, Priority::Normal, true); // one that wakes itself for ever
        match next(&mut roster, From::Busy, || ()).0 {
            Next::Run(item) => picked.push(item),
            other => panic!("{other:?}"),
        }
    }
    let new: Vec<_> = picked.iter().enumerate().filter(|(_, item)| **item < 100).collect();
    assert_eq!(new, [(7, &0), (15, &1), (23, &2), (31, &3)]);
}

#[test]
fn the_thread_that_slept_last_is_woken_first() {
    let mut roster = Roster::new(limits(3, 3, 0), QueuePolicy::Fifo);
    for seat in 1..=3 {
        assert!(roster.hire());
        let next = next(&mut roster, From::Searching, || seat);
        assert_eq!(next, (Next::Sleep, Ask::Nothing));
    }
    assert_eq!(roster.push("a", Priority::Normal, false), Ask::Wake(3));
    assert_eq!(roster.push("b", Priority::Normal, false), Ask::Nothing, "one is coming, and will ask for the next");
    assert_eq!(next(&mut roster, From::Coming, || 3), (Next::Run("a"), Ask::Wake(2)));
}

#[test]
fn a_thread_that_never_came_is_made_up_for_by_one_that_sleeps() {
    let mut roster = Roster::new(limits(0, 2, 0), QueuePolicy::Fifo);
    assert_eq!(roster.push("a", Priority::Normal, false), Ask::Spawn);
    assert_eq!(next(&mut roster, From::Coming, || 1), (Next::Run("a"), Ask::Nothing));
    assert_eq!(roster.push("b", Priority::Normal, false), Ask::Spawn);
    assert_eq!(next(&mut roster, From::Busy, || 1), (Next::Run("b"), Ask::Nothing));
    assert_eq!(next(&mut roster, From::Busy, || 1), (Next::Search, Ask::Nothing));
    assert_eq!(next(&mut roster, From::Searching, || 1), (Next::Sleep, Ask::Nothing));
    assert_eq!(roster.push("c", Priority::Normal, false), Ask::Nothing, "the second thread is on its way");
    roster.lost(From::Coming);
    assert_eq!(roster.make_up(), (vec![], Ask::Wake(1)));
}

#[test]
fn a_reserved_thread_that_sleeps_is_woken_again_and_ends_with_the_crew() {
    let mut roster = Roster::new(limits(1, 1, 1), QueuePolicy::Fifo);
    assert!(roster.hire());
    assert_eq!(roster.push("acquire", Priority::Normal, false), Ask::Nothing, "the one thread is on its way");
    assert_eq!(next(&mut roster, From::Busy, || 1), (Next::Run("acquire"), Ask::Nothing));
    assert_eq!(roster.push("release", Priority::Release, false), Ask::SpawnReserved);
    assert_eq!(roster.push("another", Priority::Normal, false), Ask::Nothing);
    assert_eq!(roster.next_reserved(From::Coming, true, || 2), (Next::Run("release"), Ask::Nothing));
    assert_eq!(roster.next_reserved(From::Busy, true, || 2), (Next::Sleep, Ask::Nothing));
    assert_eq!(roster.push("release", Priority::Release, false), Ask::Wake(2));
    assert_eq!(roster.next_reserved(From::Coming, true, || 2), (Next::Run("release"), Ask::Nothing));
    assert_eq!(roster.next_reserved(From::Busy, true, || 2), (Next::Sleep, Ask::Nothing));
    assert_eq!(roster.close(), [2], "the other one is busy");
    assert_eq!(roster.next_reserved(From::Busy, true, || 2), (Next::Exit, Ask::Nothing));
    assert_eq!(roster.threads(), 1);
}
