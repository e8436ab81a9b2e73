use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    Reason, StoreError, TaskId,
    live::Live,
    record::Ending,
    store::{Op, Written},
};

/// Who waits for a record to be accepted.
pub(super) type Reply = oneshot::Sender<Result<(), StoreError>>;

/// What is to be written, and when. Without I/O: batches are handed out, and what became of them comes back, one at a time.
///
/// Invariants: an entry is in `queue` exactly if it is `due`, and not twice in a batch; an entry leaves when its final record is written
/// or need not be, so nothing that was accepted is forgotten.
#[derive(Default)]
pub(super) struct Ledger {
    entries: HashMap<TaskId, Entry>,
    queue: BTreeSet<(Instant, u64, TaskId)>,
    next: u64,
    /// What was handed out and has not come back.
    in_flight: Vec<TaskId>,
    outage: Option<Outage>,
    /// What has left. It is dropped outside the lock, for foreign values hang on it: wakers, and perhaps a pool.
    left: Vec<Entry>,
    pub(super) fenced: u64,
    pub(super) failed_writes: u64,
}

pub(super) struct Entry {
    live: Arc<Live>,
    stage: Stage,
    due: Option<(Instant, u64)>,
    /// A batch that it was in has failed, and it may be to blame: it is written alone.
    is_suspect: bool,
    failures: u32,
}

enum Stage {
    /// Not written, or nobody knows.
    Accepting(Option<Reply>),
    /// The store has it, or may have it.
    Written,
}

/// The store did not answer, or is full. Until then nothing is tried, and nothing accepted.
struct Outage {
    error: StoreError,
    until: Instant,
    failures: u32,
}

/// What has to be done about an answer of the store, outside the lock.
pub(super) enum Effect {
    Finish(Arc<Live>, Ending),
    Reply(Reply, Result<(), StoreError>),
}

/// What waits for one transaction goes into the next: so many at most, that a slow disk still answers soon.
pub(super) const MAX_BATCH: usize = 512;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

impl Ledger {
    /// A record that is to be accepted. Refused at once while the store is out.
    pub(super) fn accept(&mut self, live: Arc<Live>, reply: Reply, now: Instant) -> Result<(), StoreError> {
        if let Some(outage) = self.outage.as_ref().filter(|outage| outage.until > now) {
            return Err(outage.error.again());
        }
        let id = live.id();
        let stage = Stage::Accepting(Some(reply));
        self.entries.insert(id, Entry { live, stage, due: None, is_suspect: false, failures: 0 });
        self.schedule(id, now);
        Ok(())
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Arc<Live>> {
        self.entries.get(&id).map(|entry| &entry.live)
    }

    /// The record has changed, and is to be written then at the latest.
    pub(super) fn schedule(&mut self, id: TaskId, at: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match entry.due {
            Some((due, _)) if due <= at => return,
            Some((due, number)) => {
                self.queue.remove(&(due, number, id));
            }
            None => {}
        }
        self.next += 1;
        entry.due = Some((at, self.next));
        self.queue.insert((at, self.next, id));
    }

    /// When there is something to write, if nothing else comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (at, ..) = self.queue.first()?;
        Some(self.outage.as_ref().map_or(*at, |outage| outage.until.max(*at)))
    }

    /// What is to be written now, in the order in which it became due.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Op> {
        let mut batch = Vec::new();
        while batch.len() < MAX_BATCH && self.next_due().is_some_and(|due| due <= now) {
            let Some(&(at, number, id)) = self.queue.first() else { break };
            let Some(entry) = self.entries.get_mut(&id) else { break };
            if entry.is_suspect && !batch.is_empty() {
                break;
            }
            self.queue.remove(&(at, number, id));
            entry.due = None;
            let record = Box::new(entry.live.record());
            let is_left = matches!(entry.stage, Stage::Accepting(_)) && record.state.is_final();
            if is_left && !entry.is_suspect {
                self.left.extend(self.entries.remove(&id)); // whoever wanted it has left, and nobody knows of it
                continue;
            }
            if is_left {
                entry.stage = Stage::Written; // or perhaps not: then the store says so
            }
            batch.push(match entry.stage {
                Stage::Accepting(_) => Op::Accept(record),
                Stage::Written => Op::Update(record),
            });
            self.in_flight.push(id);
            if entry.is_suspect {
                break;
            }
        }
        batch
    }

    /// What became of a batch.
    pub(super) fn settle(&mut self, batch: &[Op], written: &[Written]) -> Vec<Effect> {
        self.end_outage();
        self.in_flight.clear();
        batch.iter().zip(written).filter_map(|(op, written)| self.settle_one(op, *written)).collect()
    }

    fn settle_one(&mut self, op: &Op, written: Written) -> Option<Effect> {
        let id = op.id();
        let entry = self.entries.get_mut(&id)?;
        (entry.is_suspect, entry.failures) = (false, 0);
        let live = entry.live.clone();
        match (op, written) {
            (Op::Update(record), Written::Done) => {
                if record.state.is_final() {
                    self.remove(id);
                }
                None
            }
            (Op::Update(_), Written::Unknown) => {
                self.remove(id); // it was never accepted
                None
            }
            (Op::Update(_), _) => {
                self.fenced += 1;
                self.remove(id);
                Some(Effect::Finish(live, Ending::Lost(Reason::ProcessLost)))
            }
            (_, Written::Done) => {
                let reply = entry.accepted()?;
                Some(Effect::Reply(reply, Ok(())))
            }
            (_, written) => {
                let reply = entry.accepted();
                self.remove(id);
                Some(Effect::Reply(reply?, Err(refusal(written))))
            }
        }
    }

    /// The batch was not written, or nobody knows.
    pub(super) fn fail(&mut self, error: &StoreError, now: Instant) -> Vec<Effect> {
        self.failed_writes += 1;
        let in_flight = std::mem::take(&mut self.in_flight);
        let is_out = error.is_unavailable() || error.is_full() || error.is_locked();
        let is_one = in_flight.len() == 1;
        let mut effects = Vec::new();
        for id in in_flight {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if !is_out && !is_one {
                entry.is_suspect = true; // one of them may be what the store does not like
                self.schedule(id, now);
                continue;
            }
            entry.failures += 1;
            let at = if is_out { now } else { now + back_off(entry.failures) };
            effects.extend(withdraw(entry, error));
            self.schedule(id, at);
        }
        if is_out {
            effects.extend(self.begin_outage(error, now)); // after those: what was in flight may be written
        }
        effects
    }

    /// Nothing more is tried for a while, and those who wait to be accepted are refused: nothing of theirs was written.
    pub(super) fn begin_outage(&mut self, error: &StoreError, now: Instant) -> Vec<Effect> {
        let failures = self.outage.take().map_or(1, |outage| outage.failures + 1);
        self.outage = Some(Outage { error: error.again(), until: now + back_off(failures), failures });
        self.refuse_waiting(error)
    }

    pub(super) fn end_outage(&mut self) {
        self.outage = None;
    }

    /// Whoever wrote is gone, in the midst of it.
    pub(super) fn abandon(&mut self, error: &StoreError, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        for id in std::mem::take(&mut self.in_flight) {
            if let Some(entry) = self.entries.get_mut(&id) {
                effects.extend(withdraw(entry, error));
                self.schedule(id, now);
            }
        }
        effects.extend(self.refuse_waiting(error));
        effects
    }

    fn refuse_waiting(&mut self, error: &StoreError) -> Vec<Effect> {
        let is_waiting = |(id, entry): (&TaskId, &Entry)| (matches!(entry.stage, Stage::Accepting(_))).then_some(*id);
        let waiting: Vec<_> = self.entries.iter().filter_map(is_waiting).collect();
        let mut effects = Vec::new();
        for id in waiting {
            match self.entries.get_mut(&id) {
                Some(entry) if entry.is_suspect => effects.extend(withdraw(entry, error)),
                Some(entry) => {
                    let reply = entry.accepted();
                    effects.extend(reply.map(|reply| Effect::Reply(reply, Err(error.again()))));
                    self.remove(id);
                }
                None => {}
            }
        }
        effects
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn ids(&self) -> Vec<TaskId> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn take_left(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.left)
    }

    fn remove(&mut self, id: TaskId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some((at, number)) = entry.due {
            self.queue.remove(&(at, number, id));
        }
        self.left.push(entry);
    }
}

impl Entry {
    /// The store has it, or may have it. Who waits for that, if anybody does still.
    fn accepted(&mut self) -> Option<Reply> {
        match std::mem::replace(&mut self.stage, Stage::Written) {
            Stage::Accepting(reply) => reply,
            Stage::Written => None,
        }
    }
}

/// The store may have accepted it, and nobody was told so: it is written as cancelled until the store says that it has it so, or does not
/// know it.
fn withdraw(entry: &mut Entry, error: &StoreError) -> Vec<Effect> {
    match std::mem::replace(&mut entry.stage, Stage::Written) {
        Stage::Accepting(reply) => {
            let cancelled = Ending::Cancelled(Reason::NotAccepted, None);
            let finish = Effect::Finish(entry.live.clone(), cancelled);
            let reply = reply.map(|reply| Effect::Reply(reply, Err(error.again())));
            [finish].into_iter().chain(reply).collect() // the end first: whoever is told gives the task up
        }
        Stage::Written => Vec::new(),
    }
}

fn refusal(written: Written) -> StoreError {
    match written {
        Written::Full => StoreError::full("every record is of a task that is not over"),
        _ => StoreError::locked("the lease of this process is over"),
    }
}

fn back_off(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST_RETRY)
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
