use std::collections::{BTreeMap, BTreeSet};

use super::{Epoch, Filter, Found, Listing, Op, Page, Retention, Swept, Written};
use crate::{Reason, Record, TaskId, Timestamp, record::Ending};

/// The records of a store in memory. Pure: time is an argument.
///
/// Invariants: `final_ones` has exactly the final records, by when they ended; no id has both a record and a tombstone; there are never
/// more records than `capacity`, nor more tombstones than [`TOMBSTONES`] times that.
#[derive(Debug)]
pub(super) struct Shelf {
    capacity: usize,
    retention: Retention,
    epoch: i64,
    records: BTreeMap<TaskId, (Epoch, Record)>,
    final_ones: BTreeSet<(Timestamp, TaskId)>,
    tombstones: BTreeMap<TaskId, (Timestamp, Option<String>)>,
    /// The tombstones by when they may be forgotten.
    graves: BTreeSet<(Timestamp, TaskId)>,
}

/// A tombstone is an id and an owner: a tenth of a small record.
const TOMBSTONES: usize = 8;

impl Shelf {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            retention: Retention::default(),
            epoch: 0,
            records: BTreeMap::new(),
            final_ones: BTreeSet::new(),
            tombstones: BTreeMap::new(),
            graves: BTreeSet::new(),
        }
    }

    /// A new epoch, which ends the one before.
    pub(super) fn begin(&mut self, now: Timestamp) -> Epoch {
        self.lose_all(now);
        self.epoch += 1;
        Epoch::from_number(self.epoch)
    }

    pub(super) fn is_current(&self, epoch: Epoch) -> bool {
        epoch.as_number() == self.epoch
    }

    pub(super) fn end(&mut self, epoch: Epoch, now: Timestamp) {
        if self.is_current(epoch) {
            self.begin(now);
        }
    }

    fn lose_all(&mut self, now: Timestamp) {
        for (_, record) in self.records.values_mut() {
            if record.finish(Ending::Lost(Reason::ProcessLost), now) {
                self.final_ones.extend(record.finished_at.map(|at| (at, record.id)));
            }
        }
    }

    pub(super) fn write(&mut self, epoch: Epoch, op: &Op) -> Written {
        match op {
            Op::RequestCancel { id, now } => match self.records.get_mut(id) {
                None => Written::Unknown,
                Some((_, record)) if record.state.is_final() => Written::Fenced,
                Some((_, record)) => {
                    record.request_cancel(*now);
                    Written::Done
                }
            },
            _ if !self.is_current(epoch) => Written::Fenced,
            Op::Accept(record) => self.accept(epoch, record),
            Op::Update(record) => self.update(epoch, record),
        }
    }

    fn accept(&mut self, epoch: Epoch, record: &Record) -> Written {
        if self.records.contains_key(&record.id) || self.tombstones.contains_key(&record.id) {
            return Written::Done;
        }
        if self.records.len() >= self.capacity && !self.evict_oldest(record.created_at) {
            return Written::Full;
        }
        self.records.insert(record.id, (epoch, record.clone()));
        self.final_ones.extend(record.finished_at.map(|at| (at, record.id)));
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
            self.final_ones.extend(record.finished_at.map(|at| (at, record.id)));
        }
        Written::Done
    }

    pub(super) fn get(&self, id: TaskId) -> Found {
        match (self.records.get(&id), self.tombstones.get(&id)) {
            (Some((_, record)), _) => Found::Record(Box::new(record.clone())),
            (None, Some((_, owner))) => Found::Evicted { owner: owner.clone() },
            (None, None) => Found::Unknown,
        }
    }

    pub(super) fn list(&self, filter: &Filter, page: Page) -> Listing {
        let all = match page.before {
            Some(before) => self.records.range(..before),
            None => self.records.range(..),
        };
        let wanted = all.rev().map(|(_, (_, record))| record).filter(|record| filter.matches(record));
        Listing::new(wanted.take(page.limit + 1).cloned().collect(), page)
    }

    pub(super) fn cancel_requests(&self, epoch: Epoch) -> Vec<TaskId> {
        let records = self.records.values().filter(|(owner, _)| *owner == epoch).map(|(_, record)| record);
        records
            .filter(|record| !record.state.is_final() && record.cancel_requested_at.is_some())
            .map(|record| record.id)
            .collect()
    }

    pub(super) fn sweep(&mut self, now: Timestamp, retention: &Retention) -> Swept {
        self.retention = *retention;
        let mut swept = Swept::default();
        let limit = now.before(retention.max_age());
        while self.final_ones.len() > retention.kept() || self.final_ones.first().is_some_and(|(at, _)| *at < limit) {
            self.evict_oldest(now);
            swept.evicted += 1;
        }
        while self.graves.first().is_some_and(|(at, _)| *at <= now) {
            self.forget_oldest();
            swept.forgotten += 1;
        }
        swept
    }

    /// `false` if no record is final.
    fn evict_oldest(&mut self, now: Timestamp) -> bool {
        let Some((_, id)) = self.final_ones.pop_first() else { return false };
        if let Some((_, record)) = self.records.remove(&id) {
            let until = now.after(self.retention.tombstone_age());
            self.tombstones.insert(id, (until, record.owner));
            self.graves.insert((until, id));
        }
        while self.graves.len() > self.capacity.saturating_mul(TOMBSTONES) {
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id)) = self.graves.pop_first() {
            self.tombstones.remove(&id);
        }
    }
}

#[cfg(all(test, not(tower_offload_loom)))]
mod tests;
