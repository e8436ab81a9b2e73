mod schedule;

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

use self::schedule::{Due, Lane, Schedule, Shares};
use crate::store::{StoreError, Written};

/// Decides which records are written when, and what a failed write means for each of them.
///
/// It performs no I/O, takes no lock and runs no user code: the time is an argument, and tasks `T`
/// are stored and returned, but never called. At most one batch is in flight. The owner takes it
/// with [`take`](Self::take), writes it, and reports the result to [`settle`](Self::settle) or
/// [`fail`](Self::fail). Each of these returns effects that the owner applies outside its lock.
///
/// # Life of an entry
///
/// 1. [`accept`](Self::accept) inserts it as [`Stage::Accepting`]: its caller waits for a reply.
/// 2. When the store confirms the record, the entry becomes [`Stage::Stored`].
/// 3. Each change of the record [schedules](Self::schedule) an update.
/// 4. The entry is removed when the store confirms a final record or rejects the record. So no
///    accepted task is forgotten before its final record is written.
///
/// A store can lose a record that it has confirmed, for example when an asynchronous standby
/// becomes the primary. Then it reports the next update as unknown, the entry is
/// [`Stage::Missing`], and the newest version is accepted again. An accept whose result is unknown
/// is [`Stage::Withdrawn`] instead: an unknown record needs no further write.
///
/// # Batches
///
/// A batch has a maximum cost, which counts the bytes of its records, so that a transaction stays
/// short on a slow disk or network. A store may fail batches that others would write: each failure
/// of a batch of several records halves that maximum, and each success raises it by an eighth. The
/// minimum is a batch of one record.
///
/// Accepts and updates share a batch equally while both are due, and take turns to be its first
/// record. So a backlog of results does not keep tasks from being accepted, nor the reverse.
pub(super) struct WriteQueue<K, T> {
    entries: HashMap<K, Entry<T>>,
    /// Contains each entry with a `due` time exactly once.
    schedule: Schedule<K>,
    /// The lane of the first record of the next batch.
    next_lane: Lane,
    /// Maximum cost of a batch of several records, at most [`MAX_BATCH_COST`].
    max_cost: usize,
    /// The writes of the batch in flight, in order. No id occurs twice.
    in_flight: Vec<InFlight<K>>,
    outage: Option<Outage>,
    /// Tasks of removed entries. Dropping a task can run user code, so the owner takes them out
    /// with [`take_removed`](Self::take_removed) and drops them outside its lock.
    removed: Vec<T>,
    /// Number of records that changed after the store had marked them as lost.
    pub(super) fenced: u64,
    /// Number of records that the store had lost and that were written again.
    pub(super) restored: u64,
    /// Number of batches that the store did not write.
    pub(super) failed_writes: u64,
}

struct Entry<T> {
    task: T,
    stage: Stage,
    /// Place in the schedule. `None` if no write is scheduled.
    due: Option<Due>,
    /// `true` if a batch with this entry failed, and the entry may be the cause. It is written
    /// alone.
    is_suspect: bool,
    /// Consecutive failures of batches that contained only this entry.
    failures: u32,
    /// `true` if an accept was fenced and is repeated in the next epoch.
    is_repeated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The store has not confirmed the record, and the caller waits for a reply.
    Accepting,
    /// The caller got an error, but the store may have the record. It is written as cancelled.
    Withdrawn,
    /// The store has confirmed the record.
    Stored,
    /// The store has confirmed the record, and has lost it since. It is accepted again.
    Missing,
    /// The store has confirmed the second accept. An update follows, because the store may have an
    /// older version, if a reply was lost, or none: a final record may have been evicted.
    Restored,
}

impl Stage {
    fn is_accept(self) -> bool {
        matches!(self, Self::Accepting | Self::Missing)
    }
}

/// A write of the batch in flight.
struct InFlight<K> {
    id: K,
    is_accept: bool,
    /// `true` if the written version is final. The entry is removed once it is confirmed.
    is_final: bool,
    cost: usize,
}

/// Period in which the store is unavailable, full or locked.
struct Outage {
    error: StoreError,
    /// Nothing is written or accepted before this time.
    until: Instant,
    /// Consecutive failures, which determine the backoff.
    failures: u32,
}

/// The current version of a record.
pub(super) struct Snapshot<R> {
    pub(super) record: R,
    pub(super) is_final: bool,
    /// Size of the parts whose length varies.
    pub(super) bytes: usize,
}

/// A record to be written.
#[derive(Debug)]
pub(super) enum Write<R> {
    Accept(R),
    Update(R),
}

/// Consequence of a result, applied outside the lock of the queue's owner.
pub(super) enum Effect<T> {
    /// The store has the record: reply to the caller.
    Accepted(T),
    /// The store does not have the record: reply with the error.
    Rejected(T, StoreError),
    /// The store may have the record: finish the task as not accepted, and then reply with the
    /// error. The order matters because the caller drops the work when it gets the error.
    Withdrawn(T, StoreError),
    /// Another process has marked the record as lost.
    Lost(T),
    /// The store had lost the record and has it again.
    Restored,
}

/// Maximum cost of a batch: 1 MiB, or 512 small records.
const MAX_BATCH_COST: usize = 512 * RECORD_COST;
/// Cost of a record in addition to its bytes: its row, its index entries and the log of both.
const RECORD_COST: usize = 2048;
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Time by which an update may be written before it is due, to share the batch of others.
pub(super) const SHARE_DELAY: Duration = Duration::from_millis(2);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

impl<K: Copy + Ord + Hash, T: Clone> WriteQueue<K, T> {
    pub(super) fn new() -> Self {
        Self {
            entries: HashMap::new(),
            schedule: Schedule::new(),
            next_lane: Lane::Accepts,
            max_cost: MAX_BATCH_COST,
            in_flight: Vec::new(),
            outage: None,
            removed: Vec::new(),
            fenced: 0,
            restored: 0,
            failed_writes: 0,
        }
    }

    /// Adds a task whose record is to be accepted. Fails at once during an outage.
    pub(super) fn accept(&mut self, id: K, task: T, now: Instant) -> Result<(), StoreError> {
        if let Some(outage) = self.outage.as_ref().filter(|outage| outage.until > now) {
            return Err(outage.error.duplicate());
        }
        let (stage, due) = (Stage::Accepting, None);
        let entry = Entry { task, stage, due, is_suspect: false, failures: 0, is_repeated: false };
        self.entries.insert(id, entry);
        self.schedule(id, now);
        Ok(())
    }

    pub(super) fn get(&self, id: K) -> Option<&T> {
        self.entries.get(&id).map(|entry| &entry.task)
    }

    /// Schedules a write of the record at `at`, unless it is due earlier. Unknown ids are ignored.
    pub(super) fn schedule(&mut self, id: K, at: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.due.is_some_and(|due| due.at <= at) {
            return;
        }
        if let Some(due) = entry.due {
            self.schedule.remove(due, id);
        }
        let lane = if entry.stage == Stage::Accepting { Lane::Accepts } else { Lane::Updates };
        entry.due = Some(self.schedule.insert(lane, at, id));
    }

    /// Schedules a write of every record. Called when an epoch has ended: the store reports which
    /// of them are lost.
    pub(super) fn schedule_all(&mut self, now: Instant) {
        self.ids().into_iter().for_each(|id| self.schedule(id, now));
    }

    /// Returns when the next batch can be taken.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let at = self.schedule.next_due()?;
        Some(self.outage.as_ref().map_or(at, |outage| outage.until.max(at)))
    }

    /// Takes the batch that is due, with the records that are due within [`SHARE_DELAY`]. Each lane
    /// is taken in the order in which its records become due.
    ///
    /// A suspect is taken alone. A task that became final before its first write is removed
    /// instead: its caller left, and no other party knows its id.
    pub(super) fn take<R>(&mut self, now: Instant, snapshot: impl Fn(&T) -> Snapshot<R>) -> Vec<Write<R>> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let until = now + SHARE_DELAY;
        let mut shares = Shares::new(self.next_lane);
        self.next_lane = self.next_lane.other();
        let mut taken = Vec::new();
        while let Some(lane) = shares.next() {
            let Some(id) = self.schedule.first_due(lane, until) else {
                shares.end(lane);
                continue;
            };
            let Some(entry) = self.entries.get_mut(&id) else { break };
            if entry.is_suspect && !taken.is_empty() {
                shares.end(lane);
                continue;
            }
            let Snapshot { record, is_final, bytes } = snapshot(&entry.task);
            if entry.stage == Stage::Accepting && is_final {
                if !entry.is_suspect {
                    self.remove(id);
                    continue;
                }
                entry.stage = Stage::Withdrawn; // the failed batch may have been committed
            }
            let cost = RECORD_COST.saturating_add(bytes);
            if !taken.is_empty() && shares.total().saturating_add(cost) > self.max_cost {
                shares.end(lane);
                continue;
            }
            if let Some(due) = entry.due.take() {
                self.schedule.remove(due, id);
            }
            shares.add(lane, cost);
            let (is_accept, is_suspect) = (entry.stage.is_accept(), entry.is_suspect);
            let write = if is_accept { Write::Accept(record) } else { Write::Update(record) };
            taken.push((InFlight { id, is_accept, is_final, cost }, write));
            if is_suspect {
                break;
            }
        }
        // Updates first: a full store can evict the records that they end.
        taken.sort_by_key(|(write, _)| write.is_accept);
        let (in_flight, batch) = taken.into_iter().unzip();
        self.in_flight = in_flight;
        batch
    }

    /// Processes the store's results for the batch in flight, in the order of its writes.
    ///
    /// An accept that was fenced is repeated once: the epoch has ended, and the next one begins.
    pub(super) fn settle(&mut self, written: &[Written], now: Instant) -> Vec<Effect<T>> {
        self.end_outage();
        self.max_cost = (self.max_cost + self.max_cost / 8).min(MAX_BATCH_COST);
        let in_flight = std::mem::take(&mut self.in_flight);
        in_flight.iter().zip(written).filter_map(|(write, written)| self.settle_one(write, *written, now)).collect()
    }

    fn settle_one(&mut self, write: &InFlight<K>, written: Written, now: Instant) -> Option<Effect<T>> {
        let entry = self.entries.get_mut(&write.id)?;
        (entry.is_suspect, entry.failures) = (false, 0);
        let (stage, task) = (entry.stage, entry.task.clone());
        match written {
            Written::Done if stage == Stage::Accepting => {
                entry.stage = Stage::Stored;
                Some(Effect::Accepted(task))
            }
            Written::Done if stage == Stage::Missing => {
                (entry.stage, entry.is_repeated) = (Stage::Restored, false);
                self.schedule(write.id, now);
                None
            }
            Written::Done => {
                if stage == Stage::Restored {
                    entry.stage = Stage::Stored;
                    self.restored += 1;
                }
                if write.is_final {
                    self.remove(write.id);
                }
                (stage == Stage::Restored).then_some(Effect::Restored)
            }
            Written::Fenced if stage.is_accept() && !entry.is_repeated => {
                entry.is_repeated = true;
                self.schedule(write.id, now);
                None
            }
            rejected if stage == Stage::Accepting => {
                self.remove(write.id);
                Some(Effect::Rejected(task, rejection(rejected)))
            }
            Written::Unknown if stage == Stage::Stored => {
                (entry.stage, entry.is_repeated) = (Stage::Missing, false);
                self.schedule(write.id, now);
                None
            }
            Written::Unknown => {
                self.remove(write.id);
                None
            }
            Written::Fenced | Written::Full => {
                self.fenced += 1;
                self.remove(write.id);
                Some(Effect::Lost(task))
            }
        }
    }

    /// Processes a failure of the batch in flight. The store may have committed it nevertheless.
    ///
    /// If the store is unavailable, full or locked, every waiting caller gets that error, and the
    /// next batches are smaller. Otherwise a record of the batch may be the cause, and each is
    /// retried alone.
    pub(super) fn fail(&mut self, error: &StoreError, now: Instant) -> Vec<Effect<T>> {
        self.failed_writes += 1;
        let in_flight = std::mem::take(&mut self.in_flight);
        let is_outage = error.is_unavailable() || error.is_full() || error.is_locked();
        let is_alone = in_flight.len() == 1;
        if is_outage && !is_alone {
            let cost: usize = in_flight.iter().map(|write| write.cost).sum();
            self.max_cost = (cost / 2).clamp(RECORD_COST, MAX_BATCH_COST);
        }
        let mut effects = Vec::new();
        for InFlight { id, .. } in in_flight {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if !is_outage && !is_alone {
                entry.is_suspect = true;
                self.schedule(id, now);
                continue;
            }
            entry.failures += 1;
            let at = if is_outage { now } else { now + backoff(entry.failures) };
            effects.extend(entry.withdraw(error));
            self.schedule(id, at);
        }
        if is_outage {
            // After the loop, which has marked the records in flight as possibly stored.
            effects.extend(self.begin_outage(error, now));
        }
        effects
    }

    /// Starts or extends an outage and rejects the tasks that wait to be accepted.
    pub(super) fn begin_outage(&mut self, error: &StoreError, now: Instant) -> Vec<Effect<T>> {
        let failures = self.outage.take().map_or(1, |outage| outage.failures.saturating_add(1));
        self.outage = Some(Outage { error: error.duplicate(), until: now + backoff(failures), failures });
        self.reject_waiting(error)
    }

    pub(super) fn end_outage(&mut self) {
        self.outage = None;
    }

    /// Processes the loss of the writer, possibly with a batch in flight, and rejects the tasks
    /// that wait to be accepted.
    pub(super) fn writer_stopped(&mut self, error: &StoreError, now: Instant) -> Vec<Effect<T>> {
        let mut effects = Vec::new();
        for InFlight { id, .. } in std::mem::take(&mut self.in_flight) {
            if let Some(entry) = self.entries.get_mut(&id) {
                effects.extend(entry.withdraw(error));
                self.schedule(id, now);
            }
        }
        effects.extend(self.reject_waiting(error));
        effects
    }

    fn reject_waiting(&mut self, error: &StoreError) -> Vec<Effect<T>> {
        let is_waiting = |(id, entry): (&K, &Entry<T>)| (entry.stage == Stage::Accepting).then_some(*id);
        let waiting: Vec<_> = self.entries.iter().filter_map(is_waiting).collect();
        let mut effects = Vec::new();
        for id in waiting {
            match self.entries.get_mut(&id) {
                Some(entry) if entry.is_suspect => effects.extend(entry.withdraw(error)),
                Some(entry) => {
                    effects.push(Effect::Rejected(entry.task.clone(), error.duplicate()));
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

    pub(super) fn ids(&self) -> Vec<K> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn take_removed(&mut self) -> Vec<T> {
        std::mem::take(&mut self.removed)
    }

    fn remove(&mut self, id: K) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some(due) = entry.due {
            self.schedule.remove(due, id);
        }
        self.removed.push(entry.task);
    }
}

impl<T: Clone> Entry<T> {
    /// Gives up an accept whose result is unknown. From now on the record is written as cancelled,
    /// until the store confirms that or reports the record as unknown.
    fn withdraw(&mut self, error: &StoreError) -> Option<Effect<T>> {
        if self.stage != Stage::Accepting {
            return None;
        }
        self.stage = Stage::Withdrawn;
        Some(Effect::Withdrawn(self.task.clone(), error.duplicate()))
    }
}

fn rejection(written: Written) -> StoreError {
    match written {
        Written::Full => StoreError::full(
            "every stored record belongs to an unfinished task: try again later, or raise the capacity",
        ),
        _ => StoreError::unavailable("the lease of this process has ended, and the next attempt to get one failed"),
    }
}

fn backoff(failures: u32) -> Duration {
    MIN_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests;
