use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A crew in slow motion: which threads exist and what each is doing, moved step by step in whatever order proptest
/// chooses.
struct Model {
    roster: Roster<u32>,
    pushed: u32,
    taken: BTreeSet<u32>,
    /// Asked for, not yet running: will call `next`.
    spawning: usize,
    /// Inside a job.
    busy: usize,
    /// Between `Next::Wait` and `woken`.
    waiting: usize,
    max: usize,
    closed: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Push { resumed: bool },
    Arrive,
    Finish,
    LookUp,
    TimeOut,
    FailToSpawn,
    Close,
    Halt,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<bool>().prop_map(|resumed| Step::Push { resumed }),
        6 => Just(Step::Arrive),
        6 => Just(Step::Finish),
        6 => Just(Step::LookUp),
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
            busy: 0,
            waiting: 0,
            max,
            closed: false,
        }
    }

    fn obey(&mut self, ask: Ask) {
        match ask {
            Ask::Nothing => {}
            Ask::Spawn => self.spawning += 1,
            Ask::Wake => assert!(self.waiting > 0, "a wake for nobody"),
        }
    }

    fn take(&mut self, item: u32) {
        assert!(self.taken.insert(item), "job {item} came twice");
    }

    fn next(&mut self) {
        match self.roster.next(true) {
            Next::Run(item) => {
                self.take(item);
                self.busy += 1;
            }
            Next::Wait => self.waiting += 1,
            Next::Exit => assert!(self.closed, "a thread left though it was to stay"),
        }
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
                self.next();
            }
            Step::Finish if self.busy > 0 => {
                self.busy -= 1;
                self.next();
            }
            Step::LookUp | Step::TimeOut if self.waiting > 0 => {
                if self.roster.woken() {
                    self.waiting -= 1;
                    self.next();
                } else if matches!(step, Step::TimeOut) && self.roster.timed_out() {
                    self.waiting -= 1;
                }
            }
            Step::FailToSpawn if self.spawning > 0 => {
                self.spawning -= 1;
                for item in self.roster.lost() {
                    self.take(item);
                }
            }
            Step::Close => {
                self.closed = true;
                self.roster.close();
            }
            Step::Halt => {
                self.max += usize::from(!self.roster.halted);
                self.closed = true;
                let ask = self.roster.halt();
                self.obey(ask);
            }
            _ => {}
        }
    }

    fn check(&self) {
        let threads = self.spawning + self.busy + self.waiting;
        assert_eq!(self.roster.threads(), threads);
        assert!(threads <= self.max);
        assert_eq!(self.roster.idle + self.roster.claimed, self.waiting);
        if !self.roster.is_empty() {
            let coming = self.spawning + self.roster.claimed + self.busy;
            assert!(coming > 0 || (self.closed && self.waiting > 0), "jobs wait and no thread comes");
        }
    }

    /// Lets every thread go on until all of them wait or have ended.
    fn settle(&mut self) {
        while self.spawning + self.busy > 0 || self.roster.claimed > 0 || (self.closed && self.waiting > 0) {
            self.apply(&Step::Arrive);
            self.apply(&Step::Finish);
            self.apply(&Step::LookUp);
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
        model.check();
        prop_assert_eq!(model.taken.len() as u32, model.pushed);
        prop_assert!(!model.closed || model.roster.threads() == 0);
    }

    /// `blocking(n)` must not put a call behind a thread that may block for long.
    #[test]
    fn a_push_finds_an_unpromised_thread_or_asks_for_one(
        max in 1_usize..6,
        jobs in 0_usize..12,
    ) {
        let mut model = Model::new(0, max);
        for _ in 0..jobs {
            model.apply(&Step::Push { resumed: false });
        }
        prop_assert_eq!(model.spawning, jobs.min(max));
    }
}

#[test]
fn woken_calls_go_first_and_every_eighth_pick_is_a_new_one() {
    let mut roster = Roster::new(1, 1);
    for number in 0..4 {
        let _ = roster.push(number, false);
    }
    let mut picked = Vec::new();
    for number in 100..132 {
        let _ = roster.push(number, true); // one that wakes itself for ever
        match roster.next(true) {
            Next::Run(item) => picked.push(item),
            other => panic!("{other:?}"),
        }
    }
    let new: Vec<_> = picked.iter().enumerate().filter(|(_, item)| **item < 100).collect();
    assert_eq!(new, [(7, &0), (15, &1), (23, &2), (31, &3)]);
}

#[test]
fn a_claimed_thread_is_not_promised_to_a_second_job() {
    let mut roster = Roster::new(0, 2);
    assert_eq!(roster.push('a', false), Ask::Spawn);
    assert_eq!(roster.next(true), Next::Run('a'));
    assert_eq!(roster.next(true), Next::Wait);
    assert_eq!(roster.push('b', false), Ask::Wake);
    // The one idle thread is promised to b, and b may block for long: c gets a thread of its own.
    assert_eq!(roster.push('c', false), Ask::Spawn);
}
