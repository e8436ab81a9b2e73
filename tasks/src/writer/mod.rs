//! Writes the records of this process's tasks to the store.
//!
//! [`Writer`] is shared by the handles and the tasks. [`WriterTask`] runs on a runtime and is the
//! only one that writes. It is started by the first operation that needs it, and again by the next
//! one if its runtime was shut down.

mod active;
mod queue;

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};
use tower_offload::background::Reservation;

pub(crate) use self::active::ActiveTask;
use self::{
    active::{ChangeListener, Reply, Urgency},
    queue::{Effect, Write, WriteQueue},
};
use crate::{
    Reason, Record, Retention, StoreError, TaskId, TaskStore, Timestamp,
    panic::{catch_unwind, catch_unwind_future, drop_payload, ignore_panic},
    progress::ProgressSink as _,
    record::Ending,
    store::{Found, Lease, Op, Process, StoreFuture, Written},
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
    /// Notifies the writer task that there may be work.
    wake: Notify,
    /// Notifies `shutdown` that the writer task has stopped.
    stopped: Notify,
}

struct State {
    queue: WriteQueue<TaskId, Arc<ActiveTask>>,
    /// `None` before the first epoch begins, and after the lease has expired.
    lease: Option<Lease>,
    /// Only moves forward.
    phase: Phase,
    /// `true` while a writer task exists.
    has_writer_task: bool,
    /// Operations that wait for a lease.
    lease_waiters: Vec<Reply>,
    /// Requests to cancel tasks of other processes, with the callers that wait for each.
    cancel_requests: HashMap<TaskId, (Timestamp, Vec<Reply>)>,
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
        };
        let (state, wake, stopped) = (Mutex::new(state), Notify::new(), Notify::new());
        Self { store, retention, process, clock, state, wake, stopped }
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
        self.ensure_started().await?;
        self.store.get(id).await
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
            Phase::Closed | Phase::Ended => Err(StoreError::unavailable("the store is closed")),
        })?;
        self.await_reply(replied).await
    }

    /// Writes a request to cancel a task of another process.
    pub(crate) async fn request_cancel(self: &Arc<Self>, id: TaskId) -> Result<(), StoreError> {
        let now = self.now();
        let (reply, replied) = oneshot::channel();
        let ended = self.with_state(|state| {
            if state.phase == Phase::Ended {
                return Some(state.lease);
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
            Some(None) => Err(StoreError::unavailable("it is closed")),
        }
    }

    /// Waits until this process has a lease. By then the records of crashed processes are marked as
    /// lost.
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
            let error = StoreError::unavailable("no Tokio runtime is available to write records");
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
            fenced: state.queue.fenced,
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
            Urgency::Soon => PROGRESS_DELAY,
        };
        self.with_state(|state| state.queue.schedule(id, Instant::now() + delay));
        self.wake_writer();
    }
}

/// Counters of a [`Writer`].
pub(crate) struct WriterStats {
    pub(crate) open: usize,
    pub(crate) failed_writes: u64,
    pub(crate) fenced: u64,
}

/// Applies effects of the queue. They run user code: wakers of subscribers and callers.
fn apply(effects: Vec<Effect<Arc<ActiveTask>>>) {
    for effect in effects {
        match effect {
            Effect::Accepted(task) => task.reply(Ok(())),
            Effect::Rejected(task, error) => task.reply(Err(error)),
            Effect::Withdrawn(task, error) => {
                task.finish(Ending::Cancelled(Reason::NotAccepted, None));
                task.reply(Err(error));
            }
            Effect::Lost(task) => task.finish(Ending::Lost(Reason::ProcessLost)),
        }
    }
}

fn send(replies: &mut Vec<Reply>, result: impl Fn() -> Result<(), StoreError>) {
    for reply in replies.drain(..) {
        ignore_panic(|| drop(reply.send(result())));
    }
}

fn runtime_stopped() -> StoreError {
    StoreError::unavailable("the runtime that wrote records was shut down")
}

/// Writes to the store until the [`Writer`] is closed and everything is written.
struct WriterTask {
    writer: Arc<Writer>,
    /// Time of the next renewal. `None` without a lease, and for a lease that needs no renewal.
    renew_at: Option<Instant>,
    /// Time of the next poll for cancel requests of other processes. `None` in the same cases as
    /// `renew_at`.
    poll_cancels_at: Option<Instant>,
    sweep_at: Instant,
    /// Earliest time of the next attempt to get a lease.
    begin_at: Instant,
}

/// Interval between sweeps. They evict records by age, which is not urgent, because stores bound
/// the number of records themselves.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum delay of a cancel request from another process.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(500);
const BEGIN_RETRY_DELAY: Duration = Duration::from_secs(1);

impl WriterTask {
    fn new(writer: Arc<Writer>) -> Self {
        let now = Instant::now();
        Self { writer, renew_at: None, poll_cancels_at: None, sweep_at: now, begin_at: now }
    }

    async fn run(mut self) {
        loop {
            if self.end_if_done() {
                self.release_lease().await;
                return;
            }
            let Some(lease) = self.acquire_lease().await else {
                self.wait_until(Some(self.begin_at)).await;
                continue;
            };
            if !self.renew(lease).await {
                continue;
            }
            self.poll_cancels(lease).await;
            let has_written = self.write_records(lease).await | self.write_cancel_requests(lease).await;
            self.sweep().await;
            if !has_written {
                let due = self.writer.with_state(|state| state.queue.next_due());
                let next = [due, self.renew_at, self.poll_cancels_at, Some(self.sweep_at)];
                self.wait_until(next.into_iter().flatten().min()).await;
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

    async fn release_lease(&self) {
        if let Some(lease) = self.writer.with_state(|state| state.lease) {
            let now = self.writer.now();
            let _ = call_store(|| self.writer.store.end(lease.epoch, now)).await;
        }
    }

    async fn wait_until(&self, at: Option<Instant>) {
        let at = at.unwrap_or_else(|| Instant::now() + SWEEP_INTERVAL);
        let _ = timeout_at(at, self.writer.wake.notified()).await;
    }

    /// Returns the current lease, or begins an epoch. `None` if the last attempt failed recently
    /// and no caller waits for a lease.
    async fn acquire_lease(&mut self) -> Option<Lease> {
        let (lease, is_awaited) = self.writer.with_state(|state| (state.lease, !state.lease_waiters.is_empty()));
        if lease.is_some() || (self.begin_at > Instant::now() && !is_awaited) {
            return lease;
        }
        let process = Process::new(self.writer.process.clone(), self.writer.now());
        let lease = call_store(|| self.writer.store.begin(&process)).await;
        let begun = lease.as_ref().ok().copied();
        match begun {
            Some(lease) => {
                self.renew_at = lease.renew_every.map(after);
                self.poll_cancels_at = lease.renew_every.map(|_| after(CANCEL_POLL_INTERVAL));
            }
            None => self.begin_at = after(BEGIN_RETRY_DELAY),
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
                    state.lease = Some(*lease);
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

    /// Renews the lease if that is due. Returns `false` if the lease has expired: later writes of
    /// its epoch are fenced.
    async fn renew(&mut self, lease: Lease) -> bool {
        let is_due = self.renew_at.is_some_and(|at| at <= Instant::now());
        let Some(interval) = lease.renew_every.filter(|_| is_due) else { return true };
        self.renew_at = Some(after(interval));
        let has_expired = matches!(call_store(|| self.writer.store.renew(lease.epoch)).await, Ok(false));
        if has_expired {
            self.writer.with_state(|state| state.lease = None);
            self.begin_at = Instant::now();
        }
        !has_expired
    }

    /// Cancels the tasks for which other processes have written a cancel request.
    async fn poll_cancels(&mut self, lease: Lease) {
        if self.poll_cancels_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.poll_cancels_at = Some(after(CANCEL_POLL_INTERVAL));
        if self.writer.with_state(|state| state.queue.is_empty()) {
            return;
        }
        let requests = call_store(|| self.writer.store.cancel_requests(lease.epoch)).await;
        for task in requests.into_iter().flatten().filter_map(|id| self.writer.active(id)) {
            if !task.is_cancelled() {
                task.cancel();
            }
        }
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
            (Box::new(record), is_final)
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
    async fn write_records(&mut self, lease: Lease) -> bool {
        let batch = self.take_batch();
        if batch.is_empty() {
            return false;
        }
        let ops: Vec<_> = batch.into_iter().map(Op::from).collect();
        let written = self.write(lease, &ops).await;
        if written.as_ref().is_ok_and(|written| written.contains(&Written::Fenced)) && self.renew_at.is_some() {
            self.renew_at = Some(Instant::now()); // the lease may have expired: find out at once
        }
        if let Err(error) = &written {
            ignore_panic(|| error.report());
        }
        let effects = self.writer.with_state(|state| match &written {
            Ok(written) => state.queue.settle(written),
            Err(error) => state.queue.fail(error, Instant::now()),
        });
        apply(effects);
        true
    }

    /// Writes the cancel requests for tasks of other processes. Returns `false` if there were none.
    async fn write_cancel_requests(&self, lease: Lease) -> bool {
        let requests = self.writer.with_state(|state| std::mem::take(&mut state.cancel_requests));
        if requests.is_empty() {
            return false;
        }
        let ops: Vec<_> = requests.iter().map(|(id, (now, _))| Op::RequestCancel { id: *id, now: *now }).collect();
        let written = self.write(lease, &ops).await;
        let mut replies = requests.into_values().flat_map(|(_, replies)| replies).collect();
        send(&mut replies, || written.as_ref().map(drop).map_err(StoreError::duplicate));
        true
    }

    async fn write(&self, lease: Lease, ops: &[Op]) -> Result<Vec<Written>, StoreError> {
        let written = call_store(|| self.writer.store.write(lease.epoch, ops)).await?;
        if written.len() == ops.len() {
            Ok(written)
        } else {
            let (results, expected) = (written.len(), ops.len());
            Err(StoreError::other(format!("store returned {results} results for {expected} operations")))
        }
    }

    async fn sweep(&mut self) {
        if self.sweep_at > Instant::now() {
            return;
        }
        let (now, retention) = (self.writer.now(), &self.writer.retention);
        let has_more = call_store(|| self.writer.store.sweep(now, retention)).await.is_ok_and(|swept| swept.more);
        self.sweep_at = if has_more { Instant::now() } else { after(SWEEP_INTERVAL) };
    }
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

/// Returns the time after `delay`, or a time in the far future if the clock cannot represent it.
fn after(delay: Duration) -> Instant {
    const FAR_FUTURE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(delay).unwrap_or(now + FAR_FUTURE)
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
        let waiting = tokio::time::timeout(Duration::from_secs(5), writer.await_reply(replied));
        assert!(waiting.await.expect("the caller waits forever").is_ok(), "the store can be read");
    }
}
