//! Drives the queue against a model of a store that fails in any order.
#![allow(clippy::unwrap_used)]

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{Effect, RECORD_COST, SHARE_DELAY, Snapshot, Stage, Write, WriteQueue};
use crate::store::{StoreError, Written};

#[derive(Debug, Clone, Copy)]
enum Step {
    Accept,
    /// The store replies to the batch in flight.
    Reply(Reply),
    /// The writer is dropped, possibly with a batch in flight.
    StopWriter,
    /// An accepted task changes.
    Advance(usize),
    Finish(usize),
    /// The caller leaves while its task is being accepted.
    Leave(usize),
    Take,
    /// The store forgets a record that it has confirmed.
    Vanish(usize),
    Wait(u64),
}

#[derive(Debug, Clone, Copy)]
enum Reply {
    Written,
    /// The epoch has ended: nothing is accepted.
    AcceptsFenced,
    /// The batch is committed, but the caller gets an error.
    Lost,
    Unavailable,
    Other,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let reply = prop_oneof![
        4 => Just(Reply::Written),
        1 => Just(Reply::AcceptsFenced),
        1 => Just(Reply::Lost),
        1 => Just(Reply::Unavailable),
        1 => Just(Reply::Other),
    ];
    let step = prop_oneof![
        4 => Just(Step::Accept),
        4 => reply.prop_map(Step::Reply),
        1 => Just(Step::StopWriter),
        2 => (0..20_usize).prop_map(Step::Advance),
        3 => (0..20_usize).prop_map(Step::Finish),
        1 => (0..20_usize).prop_map(Step::Leave),
        5 => Just(Step::Take),
        1 => (0..20_usize).prop_map(Step::Vanish),
        2 => (1..3000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..150)
}

/// The parts of a record that matter to the queue and to the store.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    id: usize,
    version: u64,
    end: Option<End>,
    /// Size of the result.
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Succeeded,
    Abandoned,
    NotAccepted,
    Lost,
}

/// A task of the test. `accepted` is the reply to its caller.
#[derive(Debug)]
struct Task {
    record: Record,
    accepted: Option<bool>,
}

type Shared = Rc<RefCell<Task>>;

impl Task {
    fn finish(&mut self, end: End) {
        if self.record.end.is_none() {
            self.record.end = Some(end);
            self.record.version += 1;
        }
    }

    fn reply(&mut self, accepted: bool) {
        self.accepted.get_or_insert(accepted);
    }
}

/// A store that follows the rules of [`TaskStore::write`](crate::TaskStore::write).
#[derive(Default)]
struct Store(HashMap<usize, Record>);

impl Store {
    fn write(&mut self, batch: &[Write<Record>]) -> Vec<Written> {
        batch.iter().map(|write| self.write_one(write)).collect()
    }

    fn write_one(&mut self, write: &Write<Record>) -> Written {
        match write {
            Write::Accept(record) => {
                self.0.entry(record.id).or_insert_with(|| record.clone());
                Written::Done
            }
            Write::Update(record) => match self.0.get_mut(&record.id) {
                None => Written::Unknown,
                Some(stored) if stored == record => Written::Done,
                Some(stored) if stored.end.is_some() => Written::Fenced,
                Some(stored) => {
                    if record.version >= stored.version {
                        *stored = record.clone();
                    }
                    Written::Done
                }
            },
        }
    }
}

struct World {
    queue: WriteQueue<usize, Shared>,
    now: Instant,
    store: Store,
    out: Option<Vec<Write<Record>>>,
    tasks: Vec<Shared>,
}

impl World {
    fn new() -> Self {
        let (queue, store) = (WriteQueue::new(), Store::default());
        Self { queue, now: Instant::now(), store, out: None, tasks: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept => self.accept(),
            Step::Reply(reply) => self.reply(reply),
            Step::StopWriter => {
                self.out = None;
                let effects = self.queue.writer_stopped(&StoreError::unavailable(""), self.now);
                self.apply(effects);
            }
            Step::Advance(index) => self.change(index, |task| {
                if task.record.end.is_none() {
                    task.record.version += 1;
                }
            }),
            Step::Finish(index) => self.change(index, |task| task.finish(End::Succeeded)),
            Step::Leave(index) => {
                let Some(task) = self.tasks.get(index).filter(|task| task.borrow().accepted.is_none()) else { return };
                task.borrow_mut().reply(false);
                task.borrow_mut().finish(End::Abandoned);
                self.queue.schedule(index, self.now);
            }
            Step::Take => self.take(),
            Step::Vanish(index) => {
                if self.queue.entries.get(&index).is_some_and(|entry| entry.stage == Stage::Stored) {
                    self.store.0.remove(&index);
                }
            }
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
        }
    }

    fn accept(&mut self) {
        let id = self.tasks.len();
        let record = Record { id, version: 1, end: None, bytes: 0 };
        let task = Rc::new(RefCell::new(Task { record, accepted: None }));
        if self.queue.accept(id, task.clone(), self.now).is_err() {
            task.borrow_mut().reply(false);
        }
        self.tasks.push(task);
    }

    /// Changes a task that was accepted and therefore runs.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut Task)) {
        let Some(task) = self.tasks.get(index).filter(|task| task.borrow().accepted == Some(true)) else { return };
        change(&mut task.borrow_mut());
        self.queue.schedule(index, self.now);
    }

    fn take(&mut self) {
        if self.out.is_some() {
            return;
        }
        let snapshot = |task: &Shared| {
            let record = task.borrow().record.clone();
            Snapshot { is_final: record.end.is_some(), bytes: record.bytes, record }
        };
        let batch = self.queue.take(self.now, snapshot);
        let mut ids: Vec<_> = batch.iter().map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), batch.len(), "an id occurs twice");
        self.out = Some(batch).filter(|batch| !batch.is_empty());
    }

    fn reply(&mut self, reply: Reply) {
        let Some(batch) = self.out.take() else { return };
        let effects = match reply {
            Reply::Written => {
                let written = self.store.write(&batch);
                self.queue.settle(&written, self.now)
            }
            Reply::AcceptsFenced => {
                let write = |write: &Write<Record>| match write {
                    Write::Accept(record) if self.tasks[record.id].borrow().accepted.is_none() => Written::Fenced,
                    write => self.store.write_one(write),
                };
                let written: Vec<_> = batch.iter().map(write).collect();
                self.queue.settle(&written, self.now)
            }
            Reply::Lost => {
                self.store.write(&batch);
                self.queue.fail(&StoreError::unavailable(""), self.now)
            }
            Reply::Unavailable => self.queue.fail(&StoreError::unavailable(""), self.now),
            Reply::Other => self.queue.fail(&StoreError::other(""), self.now),
        };
        self.apply(effects);
    }

    fn apply(&mut self, effects: Vec<Effect<Shared>>) {
        for effect in effects {
            let mut finish = |task: &Shared, end| {
                task.borrow_mut().finish(end);
                let id = task.borrow().record.id;
                self.queue.schedule(id, self.now);
            };
            match effect {
                Effect::Accepted(task) => task.borrow_mut().reply(true),
                Effect::Rejected(task, _) => task.borrow_mut().reply(false),
                Effect::Withdrawn(task, _) => {
                    finish(&task, End::NotAccepted);
                    task.borrow_mut().reply(false);
                }
                Effect::Lost(task) => finish(&task, End::Lost),
                Effect::Restored => {}
            }
        }
    }
}

fn record(write: &Write<Record>) -> &Record {
    match write {
        Write::Accept(record) | Write::Update(record) => record,
    }
}

fn id(write: &Write<Record>) -> usize {
    record(write).id
}

proptest! {
    /// Accepted tasks are written up to their end. A rejected task is absent from the store, or
    /// stored as cancelled.
    #[test]
    fn accepted_records_reach_the_store_in_their_final_state(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            let in_flight: Vec<_> = world.out.iter().flatten().map(id).collect();
            for (id, task) in world.tasks.iter().enumerate() {
                let task = task.borrow();
                let is_known = world.queue.get(id).is_some();
                prop_assert!(task.accepted.is_some() || is_known, "the caller of {} waits forever", id);
                prop_assert!(in_flight.contains(&id) <= is_known);
                let is_open = task.accepted == Some(true) && task.record.end.is_none();
                prop_assert!(!is_open || is_known, "the open task {} was forgotten", id);
            }
        }
        for id in 0..world.tasks.len() {
            world.step(Step::Finish(id));
        }
        for _ in 0..3 * world.tasks.len() + 3 {
            world.step(Step::Reply(Reply::Written));
            world.step(Step::Wait(6000));
            world.step(Step::Take);
            for id in 0..world.tasks.len() {
                world.step(Step::Finish(id)); // tasks that were accepted in this round
            }
        }
        prop_assert!(world.queue.is_empty() && world.queue.schedule.is_empty() && world.out.is_none());
        prop_assert_eq!(world.queue.fenced, 0, "no record was marked as lost");
        for (id, task) in world.tasks.iter().enumerate() {
            let task = task.borrow();
            match (task.accepted, world.store.0.get(&id)) {
                (Some(true), Some(stored)) => prop_assert_eq!(stored, &task.record),
                (Some(false), None) => {}
                (Some(false), Some(stored)) => {
                    prop_assert!(matches!(stored.end, Some(End::Abandoned | End::NotAccepted)), "{:?}", stored);
                }
                (accepted, stored) => prop_assert!(false, "{:?} {:?}", accepted, stored),
            }
        }
    }
}

/// A store that fences every accept would be asked forever.
#[test]
fn accept_that_is_fenced_twice_is_rejected() {
    let (mut queue, now) = (WriteQueue::new(), Instant::now());
    queue.accept(1, "task", now).unwrap();
    let mut fence = || {
        assert!(matches!(
            queue.take(now, |_| Snapshot { record: (), is_final: false, bytes: 0 })[..],
            [Write::Accept(())]
        ));
        queue.settle(&[Written::Fenced], now)
    };
    assert!(fence().is_empty(), "the first time it is repeated");
    let effects = fence();
    assert!(matches!(&effects[..], [Effect::Rejected("task", error)] if error.is_unavailable()));
    assert!(queue.is_empty());
}

#[test]
fn update_that_is_due_soon_shares_the_batch_of_an_accept() {
    let (mut queue, now) = (WriteQueue::new(), Instant::now());
    let snapshot = |_: &()| Snapshot { record: (), is_final: true, bytes: 0 };
    let accepting = |_: &()| Snapshot { record: (), is_final: false, bytes: 0 };
    queue.accept(1, (), now).unwrap();
    assert_eq!(queue.take(now, accepting).len(), 1);
    queue.settle(&[Written::Done], now);
    queue.schedule(1, now + SHARE_DELAY);
    assert!(queue.take(now, snapshot).is_empty(), "nothing is due");
    queue.accept(2, (), now).unwrap();
    assert!(matches!(queue.take(now, accepting)[..], [Write::Update(()), Write::Accept(())]));
    queue.settle(&[Written::Done, Written::Done], now);
    queue.schedule(2, now + SHARE_DELAY);
    assert_eq!(queue.take(now + SHARE_DELAY, snapshot).len(), 1, "without an accept it is written when it is due");
}

/// Callers do not wait for a store that has just failed.
#[test]
fn accept_is_rejected_at_once_until_the_outage_may_have_ended() {
    let (mut queue, now) = (WriteQueue::new(), Instant::now());
    queue.accept(1, "task", now).unwrap();
    assert_eq!(queue.take(now, |_| Snapshot { record: (), is_final: false, bytes: 0 }).len(), 1);
    let effects = queue.fail(&StoreError::unavailable("gone"), now);
    assert!(matches!(effects[..], [Effect::Withdrawn("task", _)]));
    assert!(queue.accept(2, "task", now).unwrap_err().is_unavailable());
    assert!(queue.accept(2, "task", now + super::MIN_BACKOFF).is_ok());
}

/// One of them may be the cause of the failure.
#[test]
fn records_of_a_batch_that_failed_are_taken_alone() {
    let (mut queue, now) = (WriteQueue::new(), Instant::now());
    for id in 1..=3 {
        queue.accept(id, "task", now).unwrap();
    }
    assert_eq!(queue.take(now, |_| Snapshot { record: (), is_final: false, bytes: 0 }).len(), 3);
    assert!(queue.fail(&StoreError::other("invalid value"), now).is_empty(), "no caller has a reply");
    queue.accept(4, "task", now).unwrap(); // is not held back by them, and joins none of them
    for _ in 1..=4 {
        assert_eq!(queue.take(now, |_| Snapshot { record: (), is_final: false, bytes: 0 }).len(), 1);
        assert!(matches!(queue.settle(&[Written::Done], now)[..], [Effect::Accepted("task")]));
    }
    assert!(queue.take(now, |_| Snapshot { record: (), is_final: false, bytes: 0 }).is_empty());
}

#[test]
fn confirmed_record_that_vanished_is_written_again() {
    for is_final in [false, true] {
        let mut world = World::new();
        let write = |world: &mut World| {
            world.step(Step::Take);
            world.step(Step::Reply(Reply::Written));
        };
        world.step(Step::Accept);
        write(&mut world);
        world.step(Step::Vanish(0));
        assert!(world.store.0.is_empty());
        world.step(if is_final { Step::Finish(0) } else { Step::Advance(0) });
        (0..3).for_each(|_| write(&mut world));
        assert_eq!(world.store.0.get(&0), Some(&world.tasks[0].borrow().record));
        assert_eq!((world.queue.restored, world.queue.get(0).is_none()), (1, is_final));
    }
}

proptest! {
    /// Large batches exceed a timeout, for example, and the result of their writes is unknown.
    #[test]
    fn store_that_fails_large_batches_gets_every_record(
        sizes in prop::collection::vec(0..70_000_usize, 1..120),
        max_bytes in 72_000..300_000_usize,
        may_commit in any::<bool>(),
    ) {
        let mut world = World::new();
        for _ in &sizes {
            world.step(Step::Accept);
            world.step(Step::Take);
            world.step(Step::Reply(Reply::Written));
        }
        for (id, bytes) in sizes.iter().enumerate() {
            world.tasks[id].borrow_mut().record.bytes = *bytes;
            world.step(Step::Finish(id));
        }
        let mut failed = 0;
        for round in 0..20 + 4 * sizes.len() {
            world.step(Step::Accept);
            world.step(Step::Take);
            let bytes: usize = world.out.iter().flatten().map(|write| RECORD_COST + record(write).bytes).sum();
            let is_written = bytes <= max_bytes || world.out.as_ref().is_some_and(|batch| batch.len() == 1);
            world.step(Step::Reply(match (is_written, may_commit) {
                (true, _) => Reply::Written,
                (false, true) => Reply::Lost,
                (false, false) => Reply::Unavailable,
            }));
            world.step(Step::Wait(6000));
            failed += usize::from(!is_written);
            prop_assert!(failed <= 12 + round / 3, "{} of {} batches have failed", failed, round);
        }
        for id in 0..sizes.len() {
            prop_assert!(world.queue.get(id).is_none(), "{} is not written", id);
            let stored = world.store.0[&id].clone();
            prop_assert_eq!(stored, world.tasks[id].borrow().record.clone());
        }
        let new = &world.tasks[sizes.len()..];
        let accepted = new.iter().filter(|task| task.borrow().accepted == Some(true)).count();
        prop_assert!(2 * accepted > new.len(), "{} of {} tasks were accepted", accepted, new.len());
    }
}
