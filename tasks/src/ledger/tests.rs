//! What is accepted is written to its end, what is refused is not there or says so, however the store fails.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::Instant,
};

use super::{Effect, Ledger};
use tower_offload::Background;

use crate::{
    Json, MemoryStore, Reason, Record, Retention, StoreError, TaskId, TaskState, TaskStore, Timestamp,
    live::Live,
    progress::Report as _,
    record::Ending,
    shared::Shared,
    store::{Epoch, Found, Op, Process},
};

#[derive(Debug, Clone, Copy)]
enum Step {
    Accept,
    /// The batch that is out comes back.
    Answer(Answer),
    /// Whoever writes is gone.
    Abandon,
    /// Of the tasks that there are.
    Advance(usize),
    Finish(usize),
    /// The caller of the one that is being accepted leaves.
    Leave(usize),
    Take,
    Wait(u64),
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Lost,
    Other,
    Unavailable,
    Works,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let answer = prop_oneof![
        1 => Just(Answer::Lost),
        1 => Just(Answer::Other),
        1 => Just(Answer::Unavailable),
        4 => Just(Answer::Works),
    ];
    let step = prop_oneof![
        4 => Just(Step::Accept),
        4 => answer.prop_map(Step::Answer),
        1 => Just(Step::Abandon),
        2 => (0..20_usize).prop_map(Step::Advance),
        3 => (0..20_usize).prop_map(Step::Finish),
        1 => (0..20_usize).prop_map(Step::Leave),
        5 => Just(Step::Take),
        2 => (1..3000_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..150)
}

struct World {
    ledger: Ledger,
    now: Instant,
    store: MemoryStore,
    epoch: Epoch,
    out: Option<Vec<Op>>,
    tasks: Vec<Task>,
    background: Background,
    shared: Arc<Shared>,
}

struct Task {
    live: Arc<Live>,
    answer: oneshot::Receiver<Result<(), StoreError>>,
    accepted: Option<bool>,
}

fn now<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::new();
        let epoch = now(store.begin(&Process::new("", Timestamp::default()))).unwrap().epoch;
        let clock = Arc::new(|| SystemTime::UNIX_EPOCH);
        let shared = Arc::new(Shared::new(Arc::new(store.clone()), Retention::default(), String::new(), clock));
        let background = Background::builder().pool(tower_offload::pool::Inline::new()).build();
        let (ledger, now) = (Ledger::default(), Instant::now());
        Self { ledger, now, store, epoch, out: None, tasks: Vec::new(), background, shared }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept => self.accept(),
            Step::Answer(answer) => self.answer(answer),
            Step::Abandon => {
                self.out = None;
                let effects = self.ledger.abandon(&StoreError::unavailable(""), self.now);
                self.apply(effects);
            }
            Step::Advance(place) => self.change(place, |live| {
                live.begin();
                live.advance(Some(0.5), None);
            }),
            Step::Finish(place) => self.change(place, |live| {
                live.begin();
                live.finish(Ending::Succeeded(Json::new(&1).unwrap()));
            }),
            Step::Leave(place) => {
                let Some(task) = self.tasks.get_mut(place).filter(|task| task.accepted.is_none()) else { return };
                task.accepted = Some(false);
                task.answer.close();
                task.live.finish(Ending::Cancelled(Reason::Abandoned, None));
                let id = task.live.id();
                self.ledger.schedule(id, self.now);
            }
            Step::Take => {
                if self.out.is_none() {
                    let batch = self.ledger.take(self.now);
                    let mut ids: Vec<_> = batch.iter().map(Op::id).collect();
                    ids.sort();
                    ids.dedup();
                    assert_eq!(ids.len(), batch.len(), "no id twice");
                    self.out = Some(batch).filter(|batch| !batch.is_empty());
                }
            }
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
        }
        self.hear();
    }

    fn accept(&mut self) {
        let mut bytes = [0; TaskId::BYTES];
        bytes[0] = self.tasks.len() as u8;
        let record = Record::new(TaskId::from_bytes(bytes), "", Timestamp::default());
        let place = self.background.reserve("").unwrap();
        let live = Arc::new(Live::new(record, &place, self.shared.clone()));
        let (reply, answer) = oneshot::channel();
        let accepted = self.ledger.accept(live.clone(), reply, self.now).is_err().then_some(false);
        self.tasks.push(Task { live, answer, accepted });
    }

    /// Of a task that was accepted and so runs.
    fn change(&mut self, place: usize, change: impl FnOnce(&Live)) {
        let Some(task) = self.tasks.get(place).filter(|task| task.accepted == Some(true)) else { return };
        change(&task.live);
        self.ledger.schedule(task.live.id(), self.now);
    }

    fn answer(&mut self, answer: Answer) {
        let Some(batch) = self.out.take() else { return };
        let is_written = matches!(answer, Answer::Lost | Answer::Works);
        let written = is_written.then(|| now(self.store.write(self.epoch, &batch)).unwrap());
        let effects = match (answer, written) {
            (Answer::Works, Some(written)) => self.ledger.settle(&batch, &written),
            (Answer::Other, _) => self.ledger.fail(&StoreError::other(""), self.now),
            _ => self.ledger.fail(&StoreError::unavailable(""), self.now),
        };
        self.apply(effects);
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Finish(live, ending) => {
                    live.finish(ending);
                    self.ledger.schedule(live.id(), self.now);
                }
                Effect::Reply(reply, result) => drop(reply.send(result)),
            }
        }
    }

    /// Those that wait for an answer look.
    fn hear(&mut self) {
        for task in self.tasks.iter_mut().filter(|task| task.accepted.is_none()) {
            match task.answer.try_recv() {
                Ok(answer) => task.accepted = Some(answer.is_ok()),
                Err(TryRecvError::Closed) => task.accepted = Some(false),
                Err(TryRecvError::Empty) => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_accepted_is_written_to_its_end_and_what_is_refused_is_not_or_says_so(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            let in_flight: HashMap<_, _> = world.out.iter().flatten().map(|op| (op.id(), ())).collect();
            for task in &world.tasks {
                let id = task.live.id();
                let is_known = world.ledger.get(id).is_some();
                prop_assert!(task.accepted.is_some() || is_known, "whoever waits will hear");
                prop_assert!(in_flight.contains_key(&id) <= is_known);
                let is_open = task.accepted == Some(true) && !task.live.record().state.is_final();
                prop_assert!(!is_open || is_known, "what is not over is not forgotten");
            }
        }
        for place in 0..world.tasks.len() {
            world.step(Step::Finish(place));
        }
        for _ in 0..3 * world.tasks.len() + 3 {
            world.step(Step::Answer(Answer::Works));
            world.step(Step::Wait(6000));
            world.step(Step::Take);
            for place in 0..world.tasks.len() {
                world.step(Step::Finish(place)); // those that were accepted just now
            }
        }
        prop_assert!(world.ledger.is_empty() && world.ledger.queue.is_empty() && world.out.is_none());
        for task in &world.tasks {
            let found = now(world.store.get(task.live.id())).unwrap();
            match (task.accepted, found) {
                (Some(true), Found::Record(record)) => prop_assert_eq!(*record, task.live.record()),
                (Some(false), Found::Unknown) => {}
                (Some(false), Found::Record(record)) => {
                    prop_assert_eq!(record.state, TaskState::Cancelled);
                    prop_assert!(matches!(record.reason, Some(Reason::Abandoned | Reason::NotAccepted)));
                }
                (accepted, found) => prop_assert!(false, "{:?} {:?}", accepted, found),
            }
        }
    }
}
