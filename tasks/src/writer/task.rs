//! The task that writes.

use std::{cell::RefCell, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    ActiveTask, Phase, Writer, apply, call_store,
    queue::{Snapshot, Write},
    send,
    upkeep::Upkeep,
};
use crate::{
    Record, StoreError,
    metrics::WriterMetrics,
    panic::ignore_panic,
    store::{Lease, Op, Process, Written},
};

/// Writes to the store until the [`Writer`] is closed and everything is written.
pub(super) struct WriterTask {
    writer: Arc<Writer>,
    /// The tasks that keep the current lease. They are aborted when this task is dropped.
    upkeep: Option<Upkeep>,
    /// Earliest time of the next attempt to get a lease.
    begin_at: Instant,
    metrics: WriterMetrics,
}

/// Maximum time between two looks at the queue, which wakes the task if there is work.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
const BEGIN_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of cancel requests per batch, so that a transaction stays short.
const MAX_CANCEL_REQUESTS: usize = 512;

impl WriterTask {
    pub(super) fn new(writer: Arc<Writer>) -> Self {
        Self { writer, upkeep: None, begin_at: Instant::now(), metrics: WriterMetrics::new() }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.metrics.update(self.writer.stats());
            if self.end_if_done() {
                self.release_lease().await;
                return;
            }
            let Some(lease) = self.acquire_lease().await else {
                self.upkeep = None;
                self.wait_until(Some(self.begin_at)).await;
                continue;
            };
            if self.upkeep.as_ref().is_none_or(|upkeep| upkeep.epoch != lease.epoch) {
                self.upkeep = Some(Upkeep::start(&self.writer, &lease));
            }
            let has_written = self.write_records(&lease).await | self.write_cancel_requests(&lease).await;
            if !has_written {
                let due = self.writer.with_state(|state| state.queue.next_due());
                self.wait_until(due).await;
            }
        }
    }

    /// Enters the phase `Ended` if the writer is closed and everything is written.
    fn end_if_done(&self) -> bool {
        let ended = self.writer.with_state(|state| {
            let is_done = state.phase > Phase::Open && state.queue.is_empty() && state.cancel_requests.is_empty();
            is_done.then(|| state.end())
        });
        let is_done = ended.is_some();
        send(&mut ended.unwrap_or_default(), || Ok(()));
        is_done
    }

    async fn release_lease(&mut self) {
        self.upkeep = None;
        if let Some(lease) = self.writer.with_state(|state| state.lease.clone()) {
            let now = self.writer.now();
            let _ = call_store(|| self.writer.store.end(lease.epoch, now)).await;
        }
    }

    async fn wait_until(&self, at: Option<Instant>) {
        let at = at.unwrap_or_else(|| Instant::now() + IDLE_INTERVAL);
        let _ = timeout_at(at, self.writer.wake.notified()).await;
    }

    /// Returns the current lease, or begins an epoch. `None` if the last attempt failed recently
    /// and no caller waits for a lease.
    async fn acquire_lease(&mut self) -> Option<Lease> {
        let (lease, is_awaited) =
            self.writer.with_state(|state| (state.lease.clone(), !state.lease_waiters.is_empty()));
        if lease.is_some() || (self.begin_at > Instant::now() && !is_awaited) {
            return lease;
        }
        let process = Process::new(self.writer.process.clone(), self.writer.now());
        let lease = call_store(|| self.writer.store.begin(&process)).await;
        let begun = lease.as_ref().ok().cloned();
        if begun.is_none() {
            self.begin_at = Instant::now() + BEGIN_RETRY_DELAY;
        }
        self.on_lease(lease);
        begun
    }

    /// Publishes the result of an attempt to begin an epoch.
    fn on_lease(&self, lease: Result<Lease, StoreError>) {
        let (effects, mut waiters) = self.writer.with_state(|state| {
            let mut waiters = std::mem::take(&mut state.lease_waiters);
            let effects = match &lease {
                Ok(lease) => {
                    state.lease = Some(lease.clone());
                    state.queue.end_outage();
                    Vec::new()
                }
                Err(error) => {
                    waiters.append(&mut state.take_cancel_replies());
                    state.queue.begin_outage(error, Instant::now())
                }
            };
            (effects, waiters)
        });
        apply(effects);
        send(&mut waiters, || lease.as_ref().map(drop).map_err(StoreError::duplicate));
    }

    /// Takes the records that are due.
    fn take_batch(&self) -> Vec<Write<Box<Record>>> {
        let finished = RefCell::new(Vec::new());
        let snapshot = |task: &Arc<ActiveTask>| {
            let record = task.record();
            let is_final = record.state.is_final();
            if is_final {
                finished.borrow_mut().push(task.clone());
            }
            Snapshot { is_final, bytes: variable_bytes(&record), record: Box::new(record) }
        };
        let batch = self.writer.with_state(|state| state.queue.take(Instant::now(), snapshot));
        for task in finished.into_inner() {
            // A task that is final before its accept is confirmed is no longer accepted. The
            // reply has no effect if there was one.
            task.reply(Err(StoreError::unavailable("the task was cancelled before it was accepted")));
        }
        batch
    }

    /// Writes the records that are due. Returns `false` if there were none.
    async fn write_records(&self, lease: &Lease) -> bool {
        let batch = self.take_batch();
        if batch.is_empty() {
            return false;
        }
        let ops: Vec<_> = batch.into_iter().map(Op::from).collect();
        let written = self.write(lease, &ops).await;
        if written.as_ref().is_ok_and(|written| written.contains(&Written::Fenced)) {
            self.writer.check_lease(lease.epoch).await; // the epoch may have ended
        }
        if let Err(error) = &written {
            ignore_panic(|| error.report());
        }
        let effects = self.writer.with_state(|state| match &written {
            Ok(written) => state.queue.settle(written, Instant::now()),
            Err(error) => state.queue.fail(error, Instant::now()),
        });
        apply(effects);
        true
    }

    /// Writes a batch of the cancel requests for tasks of other processes. Returns `false` if there
    /// were none.
    async fn write_cancel_requests(&self, lease: &Lease) -> bool {
        let requests = self.writer.with_state(|state| state.take_cancel_requests(MAX_CANCEL_REQUESTS));
        if requests.is_empty() {
            return false;
        }
        let ops: Vec<_> = requests.iter().map(|(id, (now, _))| Op::RequestCancel { id: *id, now: *now }).collect();
        let written = self.write(lease, &ops).await;
        let mut replies = requests.into_values().flat_map(|(_, replies)| replies).collect();
        send(&mut replies, || written.as_ref().map(drop).map_err(StoreError::duplicate));
        true
    }

    async fn write(&self, lease: &Lease, ops: &[Op]) -> Result<Vec<Written>, StoreError> {
        let written = call_store(|| self.writer.store.write(lease.epoch, ops)).await?;
        if written.len() == ops.len() {
            Ok(written)
        } else {
            let (results, expected) = (written.len(), ops.len());
            Err(StoreError::other(format!("store returned {results} results for {expected} operations")))
        }
    }
}

/// Returns the size of the texts of a record.
fn variable_bytes(record: &Record) -> usize {
    let failure = record.failure.as_ref().map_or(0, |failure| {
        failure.class.len() + failure.message.len() + failure.detail.as_ref().map_or(0, |detail| detail.as_str().len())
    });
    let texts = [&record.owner, &record.message].into_iter().flatten().map(String::len).sum::<usize>();
    record.name.len() + texts + record.result.as_ref().map_or(0, |result| result.as_str().len()) + failure
}

impl Drop for WriterTask {
    fn drop(&mut self) {
        self.writer.writer_stopped();
    }
}

impl From<Write<Box<Record>>> for Op {
    fn from(write: Write<Box<Record>>) -> Self {
        match write {
            Write::Accept(record) => Self::Accept(record),
            Write::Update(record) => Self::Update(record),
        }
    }
}
