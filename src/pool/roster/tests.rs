use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A crew in slow motion: which threads exist and what each is doing, moved step by step in whatever order proptest
/// chooses.
struct Model {
    roster: Roster<u32, u32>,
    pushed: u32,
    taken: BTreeSet<u32>,
    /// Asked for, not yet running.
    spawning: usize,
    /// Woken, not yet running.
    woken: usize,
    /// Woken because the crew closes, not yet running.
    closing: usize,
    searching: usize,
    busy: usize,
    /// The seats of those that sleep.
    asleep: BTreeSet<u32>,
    seats: u32,
    max: usize,
    closed: bool,
    failed: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Arrive,
    Close,
    FailToSpawn,
    Finish,
    Found,
    Halt,
    Push { resumed: bool },
    TimeOut,
    WakeUp,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<bool>().prop_map(|resumed| Step::Push { resumed }),
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
    fn new(min: usize, max: usize) -> Self {
        Self {
            roster: Roster::new(min, max),
            pushed: 0,
            taken: BTreeSet::new(),
            spawning: 0,
            woken: 0,
            closing: 0,
            searching: 0,
            busy: 0,
            asleep: BTreeSet::new(),
            seats: 0,
            max,
            closed: false,
            failed: false,
        }
    }

    fn obey(&mut self, ask: Ask<u32>) {
        match ask {
            Ask::Nothing => {}
            Ask::Spawn => self.spawning += 1,
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
        let (next, ask) = self.roster.next(from, true, || {
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

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Push { resumed } => {
                let ask = self.roster.push(self.pushed, *resumed);
                self.pushed += 1;
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
                let (jobs, ask) = self.roster.lost(From::Coming);
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
            assert!(self.asleep.remove(&seat));
            self.closing += 1;
        }
    }

    fn check(&self) {
        let threads = self.spawning + self.woken + self.closing + self.searching + self.busy + self.asleep.len();
        assert_eq!(self.roster.threads(), threads);
        assert!(threads <= self.max && self.searching <= 1 && self.spawning + self.woken <= 1);
        assert_eq!(self.roster.coming, self.spawning + self.woken == 1);
        if !self.roster.is_empty() {
            let coming = self.spawning + self.woken + self.searching > 0;
            // A thread that could not be had is not asked for again before the next change.
            let all_busy = self.busy + self.closing == self.max || self.failed && self.busy + self.closing > 0;
            assert!(coming || all_busy, "a job waits, and no thread comes though there might be one");
        }
    }

    /// Lets every thread go on until all of them sleep or have ended.
    fn settle(&mut self) {
        while self.spawning + self.woken + self.closing + self.searching + self.busy > 0 {
            for step in [Step::Arrive, Step::Finish, Step::Found, Step::WakeUp] {
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
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut model = Model::new(min, max);
        for step in &steps {
            model.apply(step);
            model.check();
        }
        model.settle();
        prop_assert_eq!(model.taken.len() as u32, model.pushed);
        prop_assert!(!model.closed || model.roster.threads() == 0);
    }

    /// `blocking(n)` must not leave a call behind one that blocks: every thread that comes asks for the next.
    #[test]
    fn threads_come_one_after_the_other_until_every_job_has_one(max in 1_usize..6, jobs in 0_usize..12) {
        let mut model = Model::new(0, max);
        for _ in 0..jobs {
            model.apply(&Step::Push { resumed: false });
        }
        for _ in 0..max {
            model.apply(&Step::Arrive); // and none of them ever finishes
        }
        prop_assert_eq!(model.busy, jobs.min(max));
    }
}

#[test]
fn woken_calls_go_first_and_every_eighth_pick_is_a_new_one() {
    let mut roster = Roster::<_, ()>::new(1, 1);
    for number in 0..4 {
        let _ = roster.push(number, false);
    }
    let mut picked = Vec::new();
    for number in 100..132 {
        let _ = roster.push(number, true); // one that wakes itself for ever
        match roster.next(From::Busy, true, || ()).0 {
            Next::Run(item) => picked.push(item),
            other => panic!("{other:?}"),
        }
    }
    let new: Vec<_> = picked.iter().enumerate().filter(|(_, item)| **item < 100).collect();
    assert_eq!(new, [(7, &0), (15, &1), (23, &2), (31, &3)]);
}

#[test]
fn the_thread_that_slept_last_is_woken_first() {
    let mut roster = Roster::new(3, 3);
    for seat in 1..=3 {
        assert!(roster.hire());
        let next = roster.next(From::Searching, true, || seat);
        assert_eq!(next, (Next::Sleep, Ask::Nothing));
    }
    assert_eq!(roster.push("a", false), Ask::Wake(3));
    assert_eq!(roster.push("b", false), Ask::Nothing, "one is coming, and will ask for the next");
    assert_eq!(roster.next(From::Coming, true, || 3), (Next::Run("a"), Ask::Wake(2)));
}

#[test]
fn a_thread_that_never_came_is_made_up_for_by_one_that_sleeps() {
    let mut roster = Roster::new(0, 2);
    assert_eq!(roster.push("a", false), Ask::Spawn);
    assert_eq!(roster.next(From::Coming, true, || 1), (Next::Run("a"), Ask::Nothing));
    assert_eq!(roster.push("b", false), Ask::Spawn);
    assert_eq!(roster.next(From::Busy, true, || 1), (Next::Run("b"), Ask::Nothing));
    assert_eq!(roster.next(From::Busy, true, || 1), (Next::Search, Ask::Nothing));
    assert_eq!(roster.next(From::Searching, true, || 1), (Next::Sleep, Ask::Nothing));
    assert_eq!(roster.push("c", false), Ask::Nothing, "the second thread is on its way");
    assert_eq!(roster.lost(From::Coming), (vec![], Ask::Wake(1)));
}
