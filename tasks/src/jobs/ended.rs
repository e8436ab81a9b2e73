//! Calls the callback of the application for jobs that this process has ended.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use riverqueue::JobState;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{database::Recovered, events};
use crate::{
    Record, StoreError, TaskId, Timestamp,
    panic::{catch_unwind, drop_payload},
    store::Found,
    writer::Writer,
};

pub(super) type Callback = Arc<dyn Fn(&Record) + Send + Sync>;

/// The jobs that have ended and whose callback is still to be called.
#[derive(Default)]
pub(super) struct EndedJobs {
    /// `None` without a callback.
    sender: Option<mpsc::Sender<TaskId>>,
    calls: Calls,
}

/// What the senders and the task that calls share.
#[derive(Clone, Default)]
struct Calls {
    /// Number of jobs in the channel or in the batch that is being called.
    pending: watch::Sender<usize>,
    skipped: Arc<AtomicU64>,
}

/// Maximum number of jobs that wait for a callback. Further ones are skipped.
const CAPACITY: usize = 1024;
/// Maximum number of records in one query. A result may have 64 KiB.
const MAX_BATCH: usize = 100;
/// Number of attempts to read the records of a batch.
const MAX_READS: usize = 5;
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);

impl EndedJobs {
    /// Returns the task that calls as well, if there is a callback.
    pub(super) fn new(callback: Option<Callback>) -> (Self, Option<Caller>) {
        let Some(callback) = callback else { return (Self::default(), None) };
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let calls = Calls::default();
        let ended = Self { sender: Some(sender), calls: calls.clone() };
        (ended, Some(Caller { receiver, callback, calls, recent: Recent::default() }))
    }

    /// Has the callback called for a job if its record is final. A second call for the same end has
    /// no effect.
    pub(super) fn send(&self, id: TaskId) {
        let Some(sender) = &self.sender else { return };
        self.calls.pending.send_modify(|pending| *pending += 1);
        if sender.try_send(id).is_err() {
            self.calls.done(1);
            self.calls.skip(1, None);
        }
    }

    pub(super) fn send_if_final(&self, id: TaskId, state: JobState) {
        if matches!(state, JobState::Completed | JobState::Cancelled | JobState::Discarded) {
            self.send(id);
        }
    }

    /// Sends the jobs that a recovery has ended.
    pub(super) fn send_recovered(&self, jobs: &[Recovered]) {
        let ended = jobs.iter().filter(|job| matches!(&*job.state, "cancelled" | "discarded"));
        ended.filter_map(|job| job.id).for_each(|id| self.send(id));
    }

    /// Waits until no callback is pending.
    pub(super) async fn called(&self) {
        let _ = self.calls.pending.subscribe().wait_for(|pending| *pending == 0).await;
    }

    /// Returns the number of jobs whose callback was not called.
    pub(super) fn skipped(&self) -> u64 {
        self.calls.skipped.load(Relaxed)
    }
}

impl Calls {
    fn done(&self, jobs: usize) {
        self.pending.send_modify(|pending| *pending -= jobs);
    }

    fn skip(&self, jobs: usize, error: Option<&StoreError>) {
        let before = self.skipped.fetch_add(jobs as u64, Relaxed);
        // A slow callback is reported with 1, 2, 4, 8 .. skipped jobs.
        if error.is_some() || (before + jobs as u64).is_power_of_two() {
            events::callbacks_skipped(before + jobs as u64, error);
        }
        events::count_skipped_callbacks(jobs);
    }
}

/// The task that calls the callback. It ends when the [`EndedJobs`] are dropped.
pub(super) struct Caller {
    receiver: mpsc::Receiver<TaskId>,
    callback: Callback,
    calls: Calls,
    recent: Recent,
}

impl Caller {
    pub(super) async fn run(mut self, writer: Arc<Writer>) {
        let mut ids = Vec::new();
        while self.receiver.recv_many(&mut ids, MAX_BATCH).await > 0 {
            let count = ids.len();
            match read(&writer, &ids).await {
                Ok(found) => {
                    let records = found.into_iter().filter_map(Found::into_record);
                    let records: Vec<_> = records.filter(|record| self.recent.is_new(record)).collect();
                    let callback = self.callback.clone();
                    // One at a time, and on a thread that may block.
                    let called = tokio::task::spawn_blocking(move || records.iter().for_each(|it| call(&callback, it)));
                    let _ = called.await; // an error means that the runtime is shutting down
                }
                Err(error) => self.calls.skip(count, Some(&error)),
            }
            self.calls.done(count);
            ids.clear();
        }
    }
}

async fn read(writer: &Writer, ids: &[TaskId]) -> Result<Vec<Found>, StoreError> {
    for _ in 1..MAX_READS {
        match writer.get_many(ids).await {
            Err(error) if error.is_unavailable() => sleep(READ_RETRY_DELAY).await,
            found => return found,
        }
    }
    writer.get_many(ids).await
}

fn call(callback: &Callback, record: &Record) {
    if let Err(payload) = catch_unwind(|| callback(record)) {
        events::callback_panicked(record.id);
        drop_payload(payload);
    }
}

/// The latest ends, so that one that is reported twice is called once.
#[derive(Default)]
struct Recent {
    /// A job that was retried after its end has another time of its next end.
    ends: HashSet<(TaskId, Option<Timestamp>)>,
    order: VecDeque<(TaskId, Option<Timestamp>)>,
}

impl Recent {
    /// Returns `true` if the record is final and this end is new.
    fn is_new(&mut self, record: &Record) -> bool {
        let end = (record.id, record.finished_at);
        if !record.state.is_final() || !self.ends.insert(end) {
            return false;
        }
        self.order.push_back(end);
        if self.order.len() > CAPACITY {
            self.order.pop_front().inspect(|oldest| _ = self.ends.remove(oldest));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskState;

    fn record(number: u16) -> Record {
        let mut id = [0; TaskId::BYTES];
        id[..2].copy_from_slice(&number.to_be_bytes());
        let mut record = Record::new(TaskId::from_bytes(id), "a", Timestamp::default());
        record.state = TaskState::Succeeded;
        record
    }

    #[test]
    fn jobs_beyond_the_capacity_are_skipped_and_counted() {
        let (ended, caller) = EndedJobs::new(Some(Arc::new(|_: &Record| {})));
        let send = |number| ended.send(record(number).id);
        (0..1024).for_each(send);
        assert_eq!(ended.skipped(), 0);
        (0..3).for_each(send);
        assert_eq!((ended.skipped(), *ended.calls.pending.borrow()), (3, 1024));
        drop(caller);
    }

    #[test]
    fn an_end_is_new_once_and_the_next_end_of_a_job_is_new() {
        let mut recent = Recent::default();
        assert!(recent.is_new(&record(0)) && !recent.is_new(&record(0)));
        let retried = Record { finished_at: Some(Timestamp::from_millis(1)), ..record(0) };
        assert!(recent.is_new(&retried));
        assert!(!recent.is_new(&Record { state: TaskState::Running, ..record(1) }));
        (1..=1024).for_each(|number| assert!(recent.is_new(&record(number))));
        assert_eq!((recent.ends.len(), recent.order.len()), (CAPACITY, CAPACITY), "the oldest are forgotten");
    }
}
