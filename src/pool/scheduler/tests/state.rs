use std::collections::BTreeSet;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::pool::{
    Priority,
    scheduler::{
        Class, QueueItem,
        state::{Action, Limits, SchedulerState, ThreadState, WakeUp},
    },
};

impl QueueItem for u32 {
    fn queued_at(&self) -> Instant {
        Instant::now()
    }
}

impl QueueItem for &str {
    fn queued_at(&self) -> Instant {
        Instant::now()
    }
}

fn state<T: QueueItem, P>(min: usize, max: usize) -> SchedulerState<T, P> {
    SchedulerState::new(Limits { min, max })
}

/// Asks for the next action.
fn next<T: QueueItem, P>(
    state: &mut SchedulerState<T, P>,
    left: ThreadState,
    parker: impl FnOnce() -> P,
) -> (Action<T>, WakeUp<P>) {
    state.next(left, true, &mut Vec::new(), parker)
}

/// Scheduler state, and the workers that it asks for. Proptest moves one worker at a time.
struct Model {
    state: SchedulerState<u32, u32>,
    pushed: BTreeSet<u32>,
    taken: BTreeSet<u32>,
    /// Workers to be spawned that have not arrived yet.
    spawning: usize,
    /// Workers unparked for an entry that have not arrived yet.
    unparked: usize,
    /// Workers unparked because the scheduler closes that have not arrived yet.
    closing: usize,
    searching: usize,
    busy: usize,
    /// Parkers of idle workers.
    idle: BTreeSet<u32>,
    parkers: u32,
    max: usize,
    closed: bool,
    /// `true` once a spawn has failed.
    failed: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Push { woken: bool },
    Spawned,
    SpawnFailed,
    Unparked,
    SearchEnded,
    EntryDone,
    KeepAliveExpired,
    Close,
    Halt,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => any::<bool>().prop_map(|woken| Step::Push { woken }),
        4 => Just(Step::Spawned),
        1 => Just(Step::SpawnFailed),
        6 => Just(Step::Unparked),
        6 => Just(Step::SearchEnded),
        6 => Just(Step::EntryDone),
        3 => Just(Step::KeepAliveExpired),
        1 => Just(Step::Close),
        1 => Just(Step::Halt),
    ]
}

impl Model {
    fn new(min: usize, max: usize) -> Self {
        Self {
            state: state(min, max),
            pushed: BTreeSet::new(),
            taken: BTreeSet::new(),
            spawning: 0,
            unparked: 0,
            closing: 0,
            searching: 0,
            busy: 0,
            idle: BTreeSet::new(),
            parkers: 0,
            max,
            closed: false,
            failed: false,
        }
    }

    fn perform(&mut self, wake_up: WakeUp<u32>) {
        match wake_up {
            WakeUp::None => {}
            WakeUp::Spawn => self.spawning += 1,
            WakeUp::Unpark(parker) => {
                assert!(self.idle.remove(&parker), "unparked a worker that is not idle");
                self.unparked += 1;
            }
        }
    }

    fn take(&mut self, item: u32) {
        assert!(self.taken.insert(item), "entry {item} was taken twice");
    }

    fn next(&mut self, left: ThreadState) {
        let (parkers, idle) = (&mut self.parkers, &mut self.idle);
        let (action, wake_up) = next(&mut self.state, left, || {
            *parkers += 1;
            idle.insert(*parkers);
            *parkers
        });
        match action {
            Action::Run(item) => {
                self.take(item);
                self.busy += 1;
            }
            Action::Search => self.searching += 1,
            Action::Park => {}
            Action::Exit => {
                assert!(self.closed, "a worker of the minimum exited");
                let (parkers, idle) = (&mut self.parkers, &mut self.idle);
                self.state.linger(|| {
                    *parkers += 1;
                    idle.insert(*parkers);
                    *parkers
                });
            }
        }
        self.perform(wake_up);
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Push { woken } => {
                let item = self.pushed.len() as u32;
                self.pushed.insert(item);
                let wake_up = self.state.push(item, Class::of(Priority::Normal, *woken));
                self.perform(wake_up);
            }
            Step::Spawned if self.spawning > 0 => {
                self.spawning -= 1;
                self.next(ThreadState::Notified);
            }
            Step::SpawnFailed if self.spawning > 0 => {
                self.failed = true;
                self.spawning -= 1;
                self.state.on_worker_lost(ThreadState::Notified);
                let (abandoned, wake_up) = self.state.rebalance();
                abandoned.into_iter().for_each(|item| self.take(item));
                self.perform(wake_up);
            }
            Step::Unparked if self.unparked > 0 => {
                self.unparked -= 1;
                self.next(ThreadState::Notified);
            }
            Step::Unparked if self.closing > 0 => {
                self.closing -= 1;
                self.next(ThreadState::Busy);
            }
            Step::SearchEnded if self.searching > 0 => {
                self.searching -= 1;
                self.next(ThreadState::Searching);
            }
            Step::EntryDone if self.busy > 0 => {
                self.busy -= 1;
                self.next(ThreadState::Busy);
            }
            Step::KeepAliveExpired => {
                if let Some(&parker) = self.idle.first() {
                    if self.state.try_expire(&parker) {
                        self.idle.remove(&parker);
                    }
                }
                assert!(self.idle.is_empty() || !self.closed, "a worker lingers forever");
            }
            Step::Close => self.close(),
            Step::Halt => {
                self.close();
                self.max += usize::from(!self.state.halted);
                let wake_up = self.state.halt();
                self.perform(wake_up);
            }
            _ => {}
        }
    }

    fn close(&mut self) {
        self.closed = true;
        for parker in self.state.close() {
            assert!(self.idle.remove(&parker));
            self.closing += 1;
        }
    }

    fn check(&self) {
        let arriving = self.spawning + self.unparked;
        let working = self.busy + self.closing;
        assert_eq!(self.state.workers(), arriving + self.searching + working + self.idle.len());
        assert!(self.state.workers() <= self.max && self.searching <= 1);
        if self.state.halted {
            // A halt asks for a worker even if one is arriving, since it may never get a
            // thread.
            assert!(!self.state.notified || arriving > 0);
        } else {
            assert!(arriving <= 1);
            assert_eq!(self.state.notified, arriving == 1);
        }
        assert_eq!(self.taken.len() < self.pushed.len(), !self.state.queue.is_empty());
        if !self.state.queue.is_empty() {
            // A worker that could not be spawned is not asked for again before the next transition.
            let all_busy = working == self.max || self.failed && working > 0;
            assert!(arriving + self.searching > 0 || all_busy, "an entry waits and no worker will take it");
        }
    }

    /// Moves every worker until all of them are idle or have exited.
    fn settle(&mut self) {
        while self.spawning + self.unparked + self.closing + self.searching + self.busy > 0 {
            for step in [Step::Spawned, Step::EntryDone, Step::SearchEnded, Step::Unparked] {
                self.apply(&step);
                self.check();
            }
        }
    }
}

proptest! {
    #[test]
    fn every_entry_is_taken_once_and_none_waits_for_an_idle_worker(
        (max, min) in (1_usize..5).prop_flat_map(|max| (Just(max), 0..=max)),
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut model = Model::new(min, max);
        for step in &steps {
            model.apply(step);
            model.check();
        }
        model.settle();
        if model.closed {
            prop_assert!(model.idle.len() <= 1, "more than one worker lingers");
            model.apply(&Step::KeepAliveExpired);
        }
        prop_assert_eq!(&model.taken, &model.pushed);
        prop_assert!(!model.closed || model.state.workers() == 0);
    }

    /// A pool of blocking calls must not leave one behind another, so each worker that arrives asks
    /// for the next. The workers of this test never finish an entry.
    #[test]
    fn workers_are_spawned_until_every_entry_has_one(max in 1_usize..6, entries in 0_usize..12) {
        let mut model = Model::new(0, max);
        for _ in 0..entries {
            model.apply(&Step::Push { woken: false });
        }
        for _ in 0..max {
            model.apply(&Step::Spawned);
        }
        prop_assert_eq!(model.busy, entries.min(max));
    }
}

#[test]
fn woken_calls_go_first_except_at_every_eighth_pick() {
    let mut state = state::<u32, ()>(1, 1);
    for number in 0..4 {
        let _ = state.push(number, Class::of(Priority::Normal, false));
    }
    let mut picked = Vec::new();
    for number in 100..132 {
        let _ = state.push(number, Class::of(Priority::Normal, true));
        match next(&mut state, ThreadState::Busy, || ()).0 {
            Action::Run(item) => picked.push(item),
            other => panic!("{other:?}"),
        }
    }
    let new: Vec<_> = picked.iter().enumerate().filter(|(_, item)| **item < 100).collect();
    assert_eq!(new, [(7, &0), (15, &1), (23, &2), (31, &3)]);
}

#[test]
fn last_parked_worker_is_woken_first() {
    let mut state = state(3, 3);
    for parker in 1..=3 {
        assert!(state.add_worker());
        let next = next(&mut state, ThreadState::Searching, || parker);
        assert_eq!(next, (Action::Park, WakeUp::None));
    }
    assert_eq!(state.push("a", Class::of(Priority::Normal, false)), WakeUp::Unpark(3));
    assert_eq!(
        state.push("b", Class::of(Priority::Normal, false)),
        WakeUp::None,
        "the notified worker wakes the next one"
    );
    assert_eq!(next(&mut state, ThreadState::Notified, || 3), (Action::Run("a"), WakeUp::Unpark(2)));
}

#[test]
fn idle_worker_replaces_one_that_was_never_spawned() {
    let mut state = state(0, 2);
    assert_eq!(state.push("a", Class::of(Priority::Normal, false)), WakeUp::Spawn);
    assert_eq!(next(&mut state, ThreadState::Notified, || 1), (Action::Run("a"), WakeUp::None));
    assert_eq!(state.push("b", Class::of(Priority::Normal, false)), WakeUp::Spawn);
    assert_eq!(next(&mut state, ThreadState::Busy, || 1), (Action::Run("b"), WakeUp::None));
    assert_eq!(next(&mut state, ThreadState::Busy, || 1), (Action::Search, WakeUp::None));
    assert_eq!(next(&mut state, ThreadState::Searching, || 1), (Action::Park, WakeUp::None));
    assert_eq!(state.push("c", Class::of(Priority::Normal, false)), WakeUp::None, "the second worker is notified");
    state.on_worker_lost(ThreadState::Notified);
    assert_eq!(state.rebalance(), (vec![], WakeUp::Unpark(1)));
}

#[test]
fn worker_that_lingers_is_woken_instead_of_a_new_one() {
    let mut state = state(1, 1);
    assert!(state.add_worker());
    assert!(state.close().is_empty());
    for call in ["a", "b"] {
        assert_eq!(next(&mut state, ThreadState::Busy, || 1), (Action::Exit, WakeUp::None));
        assert!(state.linger(|| 1));
        assert_eq!(state.push(call, Class::of(Priority::Normal, true)), WakeUp::Unpark(1));
        assert_eq!(next(&mut state, ThreadState::Notified, || 1), (Action::Run(call), WakeUp::None));
    }
    assert_eq!(next(&mut state, ThreadState::Busy, || 1), (Action::Exit, WakeUp::None));
    assert!(state.linger(|| 1));
    assert_eq!(state.close(), [1], "a second call of `close` ends the wait");
    assert_eq!((next(&mut state, ThreadState::Busy, || 1).0, state.workers()), (Action::Exit, 0));
}

#[test]
fn one_worker_lingers_at_a_time() {
    let mut state = state::<&str, _>(2, 2);
    assert!(state.add_worker() && state.add_worker());
    assert!(!state.linger(|| 0), "the scheduler is open");
    assert!(state.close().is_empty());
    assert_eq!(next(&mut state, ThreadState::Busy, || 1).0, Action::Exit);
    assert!(state.linger(|| 1));
    assert_eq!(next(&mut state, ThreadState::Busy, || 2).0, Action::Exit);
    assert!(!state.linger(|| 2));
    assert!(state.try_expire(&1), "although it belongs to the minimum");
    assert_eq!(state.workers(), 0);
}
