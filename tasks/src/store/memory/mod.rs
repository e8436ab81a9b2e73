use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Weak},
};

use crate::store::{
    Epoch, Filter, Found, Lease, Listing, Op, Page, Process, Retention, StoreError, StoreFuture, Swept, TaskStore,
    Written,
    list::{MAX_SCANNED, scan_end},
    retention::MAX_CLOCK_DIFFERENCE,
};
use crate::{
    Reason, Record, TaskId, Timestamp,
    record::Ending,
    sync::{Mutex, lock},
};

/// Keeps records in memory until the process ends. Clones share the records, and several
/// [`Tasks`](crate::Tasks) can use them.
///
/// The number of records is limited by the capacity. If it is reached, a new record evicts the
/// finished record that ended first. If no record is finished, the store is
/// [full](StoreError::is_full).
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<MemoryState>>,
}

impl MemoryStore {
    /// Creates a store with a capacity of 10 000 records.
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// Creates a store with this capacity.
    ///
    /// # Panics
    ///
    /// Panics if the capacity is 0.
    #[track_caller]
    pub fn with_capacity(capacity: usize) -> Self {
        assert!(capacity > 0, "`capacity` must be greater than zero");
        Self { state: Arc::new(Mutex::new(MemoryState::new(capacity))) }
    }

    fn ready<'a, T: Send + 'a>(&self, operation: impl FnOnce(&mut MemoryState) -> T) -> StoreFuture<'a, T> {
        let value = operation(&mut lock(&self.state));
        Box::pin(std::future::ready(Ok::<_, StoreError>(value)))
    }
}

const DEFAULT_CAPACITY: usize = 10_000;

impl TaskStore for MemoryStore {
    fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
        self.ready(|state| {
            let owner = Arc::new(());
            let epoch = state.begin(Arc::downgrade(&owner), process.started_at);
            Lease::exclusive(epoch).guard(owner)
        })
    }

    fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
        self.ready(|state| state.is_current(epoch))
    }

    fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
        self.ready(|state| state.end(epoch, now))
    }

    fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
        self.ready(|state| batch.iter().map(|op| state.write(epoch, op)).collect())
    }

    fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
        self.ready(|state| state.get(id))
    }

    fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
        self.ready(|state| state.list(filter, page))
    }

    fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
        self.ready(|state| state.cancel_requests(epoch))
    }

    fn mark_lost(&self, _: Epoch, now: Timestamp) -> StoreFuture<'_, u64> {
        self.ready(|state| state.mark_lost(now))
    }

    fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
        self.ready(|state| state.sweep(now, retention))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

/// The records of a [`MemoryStore`], without its lock. The time is an argument.
///
/// Invariants: no id has both a record and a tombstone. There are at most `capacity` records and
/// [`TOMBSTONES_PER_RECORD`] times as many tombstones.
#[derive(Debug)]
struct MemoryState {
    capacity: usize,
    retention: Retention,
    /// Number of the latest epoch.
    latest_epoch: i64,
    /// The epochs that have not ended. A reference is dead once the owner has dropped its lease.
    epochs: BTreeMap<Epoch, Weak<()>>,
    records: BTreeMap<TaskId, (Epoch, Record)>,
    /// Records with a cancel request that their owner may not know of. Contains no evicted record.
    cancel_requested: BTreeSet<TaskId>,
    /// Exactly the final records, by the time at which they ended.
    finished: BTreeSet<(Timestamp, TaskId)>,
    /// Time at which each tombstone expires, and the owner of the evicted record.
    tombstones: BTreeMap<TaskId, (Timestamp, Option<String>)>,
    /// Exactly the tombstones, by the time at which they expire.
    tombstone_expiry: BTreeSet<(Timestamp, TaskId)>,
}

/// Maximum number of tombstones, as a multiple of the capacity. A tombstone takes about a tenth of
/// the memory of a small record.
const TOMBSTONES_PER_RECORD: usize = 8;

impl MemoryState {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            retention: Retention::default(),
            latest_epoch: 0,
            epochs: BTreeMap::new(),
            records: BTreeMap::new(),
            cancel_requested: BTreeSet::new(),
            finished: BTreeSet::new(),
            tombstones: BTreeMap::new(),
            tombstone_expiry: BTreeSet::new(),
        }
    }

    fn begin(&mut self, owner: Weak<()>, now: Timestamp) -> Epoch {
        self.mark_lost(now);
        self.latest_epoch += 1;
        let epoch = Epoch::from(self.latest_epoch);
        self.epochs.insert(epoch, owner);
        epoch
    }

    fn is_current(&self, epoch: Epoch) -> bool {
        self.epochs.contains_key(&epoch)
    }

    fn end(&mut self, epoch: Epoch, now: Timestamp) {
        if let Some(owner) = self.epochs.get_mut(&epoch) {
            *owner = Weak::new();
            self.mark_lost(now);
        }
    }

    /// Ends the epochs whose owner is gone. Returns the number of their unfinished records.
    fn mark_lost(&mut self, now: Timestamp) -> u64 {
        let before = self.epochs.len();
        self.epochs.retain(|_, owner| owner.strong_count() > 0);
        if self.epochs.len() == before {
            return 0;
        }
        let mut lost = 0;
        for (epoch, record) in self.records.values_mut() {
            if !self.epochs.contains_key(epoch) && record.finish(Ending::Lost(Reason::ProcessLost), now) {
                self.finished.extend(record.finished_at.map(|at| (at, record.id)));
                lost += 1;
            }
        }
        lost
    }

    fn write(&mut self, epoch: Epoch, op: &Op) -> Written {
        match op {
            Op::RequestCancel { id, now } => match self.records.get_mut(id) {
                None => Written::Unknown,
                Some((_, record)) if record.state.is_final() => Written::Fenced,
                Some((_, record)) => {
                    record.request_cancel(*now);
                    self.cancel_requested.insert(*id);
                    Written::Done
                }
            },
            Op::Update(record) if self.is_final_of(record) => Written::Done,
            _ if !self.is_current(epoch) => Written::Fenced,
            Op::Accept(record) => self.accept(epoch, record),
            Op::Update(record) => self.update(epoch, record),
        }
    }

    /// Returns `true` if an earlier write has stored this final record, and its reply was lost.
    fn is_final_of(&self, record: &Record) -> bool {
        let is_same = |stored: &Record| (stored.state, stored.version) == (record.state, record.version);
        record.state.is_final() && self.records.get(&record.id).is_some_and(|(_, stored)| is_same(stored))
    }

    fn accept(&mut self, epoch: Epoch, record: &Record) -> Written {
        if self.records.contains_key(&record.id) || self.tombstones.contains_key(&record.id) {
            return Written::Done;
        }
        if self.records.len() >= self.capacity && !self.evict_oldest(record.created_at) {
            return Written::Full;
        }
        self.records.insert(record.id, (epoch, record.clone()));
        self.finished.extend(record.finished_at.map(|at| (at, record.id)));
        Written::Done
    }

    fn update(&mut self, epoch: Epoch, update: &Record) -> Written {
        let Some((owner, record)) = self.records.get_mut(&update.id) else { return Written::Unknown };
        if *owner != epoch || record.state.is_final() {
            return Written::Fenced;
        }
        if update.version >= record.version {
            let cancel_requested_at = record.cancel_requested_at.or(update.cancel_requested_at);
            *record = Record { cancel_requested_at, ..update.clone() };
            self.finished.extend(record.finished_at.map(|at| (at, record.id)));
        }
        Written::Done
    }

    fn get(&self, id: TaskId) -> Found {
        match (self.records.get(&id), self.tombstones.get(&id)) {
            (Some((_, record)), _) => Found::Record(Box::new(record.clone())),
            (None, Some((_, owner))) => Found::Evicted { owner: owner.clone() },
            (None, None) => Found::Unknown,
        }
    }

    fn list(&self, filter: &Filter, page: Page) -> Listing {
        let records = match page.after {
            Some(id) => self.records.range(..id),
            None => self.records.range(..),
        };
        if filter.river_id.is_some() {
            return Listing::default(); // no job is in memory
        }
        let (mut last, mut scanned) = (None, 0);
        let matching = records.rev().map(|(_, (_, record))| record).take(MAX_SCANNED).filter(|record| {
            (last, scanned) = (Some(record.id), scanned + 1);
            filter.matches(record)
        });
        let mut listing = Listing::new(matching.take(page.clamped().limit + 1).map(Record::summary).collect(), page);
        if listing.next.is_none() && scanned == MAX_SCANNED {
            let found = listing.records.last().map(|record| record.id);
            listing.next = last.map(|last| scan_end(last, found));
        }
        listing
    }

    fn cancel_requests(&mut self, epoch: Epoch) -> Vec<TaskId> {
        let (records, mut requests) = (&self.records, Vec::new());
        self.cancel_requested.retain(|id| {
            let unfinished = records.get(id).filter(|(_, record)| !record.state.is_final());
            requests.extend(unfinished.filter(|(owner, _)| *owner == epoch).map(|_| *id));
            unfinished.is_some()
        });
        requests
    }

    fn sweep(&mut self, now: Timestamp, retention: &Retention) -> Swept {
        self.retention = *retention;
        let mut swept = Swept::default();
        let min_finished_at = now.before(retention.max_age);
        while let Some(&oldest) = self.finished.first().filter(|(at, _)| *at < min_finished_at) {
            self.evict(oldest, now);
            swept.evicted += 1;
        }
        while self.finished.len() > retention.max_records {
            self.evict_oldest(now);
            swept.evicted += 1;
        }
        while self.tombstone_expiry.first().is_some_and(|(at, _)| *at <= now) {
            self.delete_oldest_tombstone();
            swept.forgotten += 1;
        }
        swept
    }

    /// Evicts the final record that ended first. Returns `false` if no record is final.
    fn evict_oldest(&mut self, now: Timestamp) -> bool {
        // A record that ended in the future is older than the others: the clock was set back.
        let future = (now.after(MAX_CLOCK_DIFFERENCE), TaskId::from_bytes([0; TaskId::BYTES]));
        let oldest = self.finished.range(future..).next().or(self.finished.first()).copied();
        oldest.inspect(|oldest| self.evict(*oldest, now)).is_some()
    }

    fn evict(&mut self, (finished_at, id): (Timestamp, TaskId), now: Timestamp) {
        self.finished.remove(&(finished_at, id));
        self.cancel_requested.remove(&id);
        if let Some((_, record)) = self.records.remove(&id) {
            let expires_at = now.after(self.retention.tombstone_ttl);
            self.tombstones.insert(id, (expires_at, record.owner));
            self.tombstone_expiry.insert((expires_at, id));
        }
        while self.tombstone_expiry.len() > self.capacity.saturating_mul(TOMBSTONES_PER_RECORD) {
            self.delete_oldest_tombstone();
        }
    }

    fn delete_oldest_tombstone(&mut self) {
        if let Some((_, id)) = self.tombstone_expiry.pop_first() {
            self.tombstones.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests;
