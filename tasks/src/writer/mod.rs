//! Writes the records of this process's tasks to the store.
//!
//! [`Writer`] is shared by the handles and the tasks. [`WriterTask`] runs on a runtime and is the
//! only one that writes. It is started by the first operation that needs it, and again by the next
//! one if its runtime was shut down. [`Upkeep`] does what must not wait for writes: it renews the
//! lease, polls for cancel requests and sweeps the store, each in a task of its own.

mod active;
mod queue;
mod task;
mod upkeep;

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::Instant,
};
use tower_offload::background::Reservation;

pub(crate) use self::active::ActiveTask;
use self::{
    active::{ChangeListener, Reply, Urgency},
    queue::{Effect, SHARE_DELAY, WriteQueue},
    task::WriterTask,
};
use crate::{
    Reason, Record, Retention, StoreError, TaskId, TaskStore, Timestamp,
    panic::{catch_unwind, catch_unwind_future, drop_payload, ignore_panic},
    record::Ending,
    store::{Epoch, Filter, Found, Lease, Listing, Op, Page, StoreFuture, Summary},
    sync::{Mutex, lock},
    timestamp::Clock,
};

/// The store of one [`Tasks`](crate::Tasks), and the records that are still to be written to it.
pub(crate) struct Writer {
    pub(crate) store: Arc<dyn TaskStore>,
    retention: Retention,
    pub(crate) process: String,
    clock: Clock,
    /// Held only for short transitions: no I/O and no user code runs under it.
    state: Mutex<State>,
    /// Number of reads that have failed.
    failed_reads: AtomicU64,
    /// Notifies the writer task that there may be work.
    wake: Notify,
    /// Notifies `shutdown` that the writer task has stopped.
    stopped: Notify,
}

struct State {
    queue: WriteQueue<TaskId, Arc<ActiveTask>>,
    /// `None` before the first epoch begins, and after it was lost.
    lease: Option<Lease>,
    /// Only moves forward.
    phase: Phase,
    /// `true` while a writer task exists.
    has_writer_task: bool,
    /// Operations that wait for a lease.
    lease_waiters: Vec<Reply>,
    /// Requests to cancel tasks of other processes, with the callers that wait for each.
    cancel_requests: HashMap<TaskId, (Timestamp, Vec<Reply>)>,
    /// Number of failed attempts to renew a lease.
    failed_renewals: u64,
    /// Number of failed attempts at other upkeep.
    failed_maintenance: u64,
    /// Number of epochs that ended although this process had not ended them.
    lost_leases: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// No task is accepted. The writer task ends once everything is written.
    Closed,
    /// Everything is written and the epoch has ended. No writer task is started.
    Ended,
}

impl State {
    /// Enters the phase `Ended`. Returns the operations that wait for a lease: none is needed now.
    fn end(&mut self) -> Vec<Reply> {
        self.phase = Phase::Ended;
        std::mem::take(&mut self.lease_waiters)
    }

    fn take_cancel_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.cancel_requests).into_values().flat_map(|(_, replies)| replies).collect()
    }

    /// Takes at most `limit` cancel requests.
    fn take_cancel_requests(&mut self, limit: usize) -> HashMap<TaskId, (Timestamp, Vec<Reply>)> {
        if self.cancel_requests.len() <= limit {
            return std::mem::take(&mut self.cancel_requests);
        }
        let ids: Vec<_> = self.cancel_requests.keys().take(limit).copied().collect();
        ids.into_iter().filter_map(|id| self.cancel_requests.remove_entry(&id)).collect()
    }
}

/// Maximum delay before progress is written.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);

impl Writer {
    pub(crate) fn new(store: Arc<dyn TaskStore>, retention: Retention, process: String, clock: Clock) -> Self {
        let state = State {
            queue: WriteQueue::new(),
            lease: None,
            phase: Phase::Open,
            has_writer_task: false,
            lease_waiters: Vec::new(),
            cancel_requests: HashMap::new(),
            failed_renewals: 0,
            failed_maintenance: 0,
            lost_leases: 0,
        };
        let (state, wake, stopped) = (Mutex::new(state), Notify::new(), Notify::new());
        Self { store, retention, process, clock, state, failed_reads: AtomicU64::new(0), wake, stopped }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the task of this process with that id, unless its final record is written.
    pub(crate) fn active(&self, id: TaskId) -> Option<Arc<ActiveTask>> {
        self.with_state(|state| state.queue.get(id).cloned())
    }

    /// Returns the newest known version of a record.
    pub(crate) async fn get(self: &Arc<Self>, id: TaskId) -> Result<Found, StoreError> {
        if let Some(task) = self.active(id) {
            return Ok(Found::Record(Box::new(task.record())));
        }
        self.read(async || self.store.get(id).await).await
    }

    /// Returns the stored records that match `filter`, newest first.
    pub(crate) async fn list(self: &Arc<Self>, filter: &Filter, page: Page) -> Result<Listing, StoreError> {
        self.read(async || self.store.list(filter, page).await).await
    }

    /// Returns the numbers of the stored records.
    pub(crate) async fn summary(self: &Arc<Self>, now: Timestamp) -> Result<Summary, StoreError> {
        self.read(async || self.store.summary(now).await).await
    }

    async fn read<T>(self: &Arc<Self>, read: impl AsyncFnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match self.ensure_started().await {
            Ok(()) => self.count_read(read().await),
            Err(error) => self.count_read(Err(error)),
        }
    }

    /// Returns the stored records of tasks, in the order of their ids.
    pub(crate) async fn get_many(&self, ids: &[TaskId]) -> Result<Vec<Found>, StoreError> {
        self.count_read(self.store.get_many(ids).await)
    }

    /// Counts a read if it has failed.
    fn count_read<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        if read.is_err() {
            self.failed_reads.fetch_add(1, Relaxed);
        }
        read
    }

    /// Creates the task of a record that is not accepted yet.
    pub(crate) fn create(self: &Arc<Self>, record: Record, reservation: &Reservation) -> Arc<ActiveTask> {
        let listener = Arc::downgrade(self) as Weak<dyn ChangeListener>;
        Arc::new(ActiveTask::new(record, reservation, self.clock.clone(), listener))
    }

    /// Writes the record of a new task and returns once the store has confirmed it.
    pub(crate) async fn accept(self: &Arc<Self>, id: TaskId, task: Arc<ActiveTask>) -> Result<(), StoreError> {
        let (reply, replied) = oneshot::channel();
        task.set_accept_reply(reply);
        self.with_state(|state| match state.phase {
            Phase::Open => state.queue.accept(id, task, Instant::now()),
            Phase::Closed | Phase::Ended => Err(closed()),
        })?;
        self.await_reply(replied).await
    }

    /// Writes a request to cancel a task of another process.
    pub(crate) async fn request_cancel(self: &Arc<Self>, id: TaskId) -> Result<(), StoreError> {
        let now = self.now();
        let (reply, replied) = oneshot::channel();
        let ended = self.with_state(|state| {
            if state.phase == Phase::Ended {
                return Some(state.lease.clone());
            }
            state.cancel_requests.entry(id).or_insert_with(|| (now, Vec::new())).1.push(reply);
            None
        });
        match ended {
            None => self.await_reply(replied).await,
            // The writer task has stopped. A request is valid in an epoch that has ended.
            Some(Some(lease)) => {
                let request = [Op::RequestCancel { id, now }];
                call_store(|| self.store.write(lease.epoch, &request)).await.map(drop)
            }
            Some(None) => Err(closed()),
        }
    }

    /// Waits until this process has a lease. In a store for one process, the records of earlier
    /// processes are marked as lost by then.
    pub(crate) async fn ensure_started(self: &Arc<Self>) -> Result<(), StoreError> {
        let (reply, replied) = oneshot::channel();
        let is_started = self.with_state(|state| {
            let is_started = state.lease.is_some() || state.phase == Phase::Ended;
            if !is_started {
                state.lease_waiters.push(reply);
            }
            is_started
        });
        if is_started { Ok(()) } else { self.await_reply(replied).await }
    }

    async fn await_reply(
        self: &Arc<Self>,
        replied: oneshot::Receiver<Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        if !self.wake_writer() {
            let error = StoreError::unavailable("no Tokio runtime is available to write records: call it within one");
            self.reject_waiting(&error, |state| !state.has_writer_task);
            return Err(error);
        }
        replied.await.unwrap_or_else(|_| Err(runtime_stopped()))
    }

    /// Wakes the writer task, or starts one on the current runtime. Returns `false` if there is
    /// neither a writer task nor a current runtime.
    fn wake_writer(self: &Arc<Self>) -> bool {
        let runtime = Handle::try_current().ok();
        let starts = self.with_state(|state| {
            let starts = !state.has_writer_task && state.phase != Phase::Ended && runtime.is_some();
            state.has_writer_task |= starts;
            starts
        });
        if let Some(runtime) = runtime.filter(|_| starts) {
            let task = WriterTask::new(self.clone());
            ignore_panic(|| drop(runtime.spawn(task.run()))); // the hooks of a runtime are user code
        }
        self.wake.notify_one();
        self.with_state(|state| state.has_writer_task || state.phase == Phase::Ended)
    }

    /// Notes that an attempt to renew the lease has failed, `failures` times in a row.
    fn renewal_failed(&self, error: &StoreError, failures: u32) {
        self.with_state(|state| state.failed_renewals += 1);
        #[cfg(not(feature = "tracing"))]
        let _ = (error, failures);
        #[cfg(feature = "tracing")]
        if failures == 1 {
            ignore_panic(|| {
                tracing::warn!(error = error as &dyn std::error::Error, "failed to renew the lease of the tasks");
            });
        }
    }

    /// Asks the store whether the epoch has ended, and drops the lease in that case. The writer
    /// task then begins another epoch.
    async fn check_lease(&self, epoch: Epoch) {
        if matches!(call_store(|| self.store.renew(epoch)).await, Ok(false)) {
            self.lease_lost(epoch);
        }
    }

    fn lease_lost(&self, epoch: Epoch) {
        let was_current = self.with_state(|state| {
            let is_current = state.lease.as_ref().is_some_and(|lease| lease.epoch == epoch);
            if is_current {
                state.lease = None;
                state.lost_leases += 1;
                state.queue.schedule_all(Instant::now());
            }
            is_current
        });
        if was_current {
            #[cfg(feature = "tracing")]
            ignore_panic(|| {
                tracing::warn!(
                    epoch = i64::from(epoch),
                    "lost the lease: another process has marked the unfinished tasks of this one as lost"
                );
            });
            self.wake.notify_one();
        }
    }

    /// Called when the writer task is dropped, at its end or with its runtime.
    fn writer_stopped(&self) {
        self.reject_waiting(&runtime_stopped(), |state| {
            state.has_writer_task = false;
            true
        });
        self.stopped.notify_waiters();
    }

    /// Fails every operation that waits for the writer task, if `condition` returns `true`.
    fn reject_waiting(&self, error: &StoreError, condition: impl FnOnce(&mut State) -> bool) {
        let (effects, mut replies) = self.with_state(|state| {
            if !condition(state) {
                return (Vec::new(), Vec::new());
            }
            let mut replies = state.take_cancel_replies();
            replies.append(&mut state.lease_waiters);
            (state.queue.writer_stopped(error, Instant::now()), replies)
        });
        apply(effects);
        send(&mut replies, || Err(error.duplicate()));
    }

    /// Accepts no more tasks.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut waiters = self.with_state(|state| {
            state.phase = state.phase.max(Phase::Closed);
            let is_unused = !state.has_writer_task && state.lease.is_none() && state.queue.is_empty();
            if is_unused && state.cancel_requests.is_empty() { state.end() } else { Vec::new() }
        });
        send(&mut waiters, || Ok(()));
        self.wake_writer();
    }

    /// Waits until everything is written. Call [`close`](Self::close) first.
    pub(crate) async fn closed_and_written(self: &Arc<Self>) {
        loop {
            let mut stopped = std::pin::pin!(self.stopped.notified());
            // Registers before the check below, so that a stop between the two is not missed.
            stopped.as_mut().enable();
            if self.with_state(|state| state.phase == Phase::Ended && !state.has_writer_task) {
                return;
            }
            self.wake_writer();
            stopped.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.with_state(|state| state.phase > Phase::Open)
    }

    /// Returns the ids of the tasks whose final record is not written.
    pub(crate) fn unwritten(&self) -> Vec<TaskId> {
        self.with_state(|state| state.queue.ids())
    }

    pub(crate) fn stats(&self) -> WriterStats {
        self.with_state(|state| WriterStats {
            open: state.queue.len(),
            failed_writes: state.queue.failed_writes,
            failed_reads: self.failed_reads.load(Relaxed),
            fenced: state.queue.fenced,
            restored: state.queue.restored,
            failed_renewals: state.failed_renewals,
            failed_maintenance: state.failed_maintenance,
            lost_leases: state.lost_leases,
        })
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let (value, removed) = {
            let mut state = lock(&self.state);
            (work(&mut state), state.queue.take_removed())
        };
        // Outside the lock: a task may own wakers and the last handle of a pool.
        removed.into_iter().for_each(|task| ignore_panic(|| drop(task)));
        value
    }
}

impl ChangeListener for Writer {
    fn on_change(self: Arc<Self>, id: TaskId, urgency: Urgency) {
        let delay = match urgency {
            Urgency::Now => Duration::ZERO,
            Urgency::NextBatch => SHARE_DELAY,
            Urgency::Soon => PROGRESS_DELAY,
        };
        self.with_state(|state| state.queue.schedule(id, Instant::now() + delay));
        self.wake_writer();
    }
}

/// Counters of a [`Writer`].
#[derive(Default)]
pub(crate) struct WriterStats {
    pub(crate) open: usize,
    pub(crate) failed_writes: u64,
    pub(crate) failed_reads: u64,
    pub(crate) fenced: u64,
    pub(crate) restored: u64,
    pub(crate) failed_renewals: u64,
    pub(crate) failed_maintenance: u64,
    pub(crate) lost_leases: u64,
}

/// Applies effects of the queue. They run user code: wakers of subscribers and callers.
fn apply(effects: Vec<Effect<Arc<ActiveTask>>>) {
    #[cfg(feature = "tracing")]
    {
        let fenced = effects.iter().filter(|effect| matches!(effect, Effect::Lost(_))).count();
        if fenced > 0 {
            ignore_panic(|| tracing::warn!(records = fenced, "discarded changes of tasks that are marked as lost"));
        }
        let restored = effects.iter().filter(|effect| matches!(effect, Effect::Restored)).count();
        if restored > 0 {
            ignore_panic(|| tracing::warn!(records = restored, "rewrote records that the store had lost"));
        }
    }
    for effect in effects {
        match effect {
            Effect::Accepted(task) => task.reply(Ok(())),
            Effect::Rejected(task, error) => task.reply(Err(error)),
            Effect::Withdrawn(task, error) => {
                task.finish(Ending::Cancelled(Reason::NotAccepted, None));
                task.reply(Err(error));
            }
            Effect::Lost(task) => task.finish(Ending::Lost(Reason::ProcessLost)),
            Effect::Restored => {}
        }
    }
}

fn send(replies: &mut Vec<Reply>, result: impl Fn() -> Result<(), StoreError>) {
    for reply in replies.drain(..) {
        ignore_panic(|| drop(reply.send(result())));
    }
}

fn closed() -> StoreError {
    StoreError::unavailable("these `Tasks` are shut down: create others")
}

fn runtime_stopped() -> StoreError {
    StoreError::unavailable("the runtime that wrote records was shut down: try again on one that runs")
}

/// Calls a method of the store, which is user code, and awaits its result.
async fn call_store<'a, T>(call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, StoreError> {
    let result = match catch_unwind(call) {
        Ok(future) => catch_unwind_future(future).await,
        Err(payload) => Err(payload),
    };
    result.unwrap_or_else(|payload| {
        drop_payload(payload);
        Err(StoreError::other("the store panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    /// `close` runs on another thread between the two steps of `ensure_started`.
    #[tokio::test]
    async fn caller_that_waits_for_a_lease_gets_a_reply_from_close() {
        let clock = Clock::new(std::time::SystemTime::now);
        let store = Arc::new(MemoryStore::new());
        let writer = Arc::new(Writer::new(store, Retention::default(), String::new(), clock));
        let (reply, replied) = oneshot::channel();
        writer.with_state(|state| state.lease_waiters.push(reply));
        writer.close();
        let waiting = tokio::time::timeout(Duration::from_secs(60), writer.await_reply(replied));
        assert!(waiting.await.expect("the caller waits forever").is_ok(), "the store can be read");
    }

    /// The background starts a task just before its work marks it as running.
    #[tokio::test]
    async fn task_that_times_out_before_its_work_starts_ends() {
        let clock = Clock::new(std::time::SystemTime::now);
        let writer = Arc::new(Writer::new(Arc::new(MemoryStore::new()), Retention::default(), String::new(), clock));
        let background = tower_offload::Background::default();
        let reservation = background.reserve("x").expect("the background is empty");
        let id = TaskId::generate(writer.now()).expect("there is a source of random numbers");
        let task = writer.create(Record::new(id, "x", writer.now()), &reservation);
        writer.accept(id, task.clone()).await.expect("the store accepts");
        task.complete(tower_offload::background::Completion::TimedOut);
        assert_eq!(task.record().state, crate::TaskState::TimedOut);
        assert!(!task.start(), "the work must not run");
        writer.close();
        writer.closed_and_written().await;
        let stored = writer.store.get(id).await.expect("the store works").into_record();
        assert_eq!(stored.map(|record| record.state), Some(crate::TaskState::TimedOut));
    }
}
