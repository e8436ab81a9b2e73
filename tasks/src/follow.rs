//! Follows the records of tasks that this process does not run.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    Record, StoreError, TaskId,
    panic::ignore_panic,
    sync::{Mutex, lock},
    writer::Writer,
};

/// The subscriptions to records that only the store knows. All of them share one look at the store,
/// twice a second, or as soon as a change is known.
///
/// A look that fails is repeated. Only if looks have failed for [`MAX_OUTAGE`], followers get the
/// error, so a restart or a failover of the database ends no event stream.
#[derive(Default)]
pub(crate) struct Followers {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    followed: HashMap<TaskId, Arc<watch::Sender<Update>>>,
    /// Tasks that are known to have changed.
    changed: HashSet<TaskId>,
    /// `true` if any task may have changed.
    look_at_all: bool,
    /// `true` while a task looks at the store.
    is_looking: bool,
}

/// The latest look at a record.
#[derive(Clone)]
pub(crate) struct Update {
    /// `None` if the record was evicted.
    pub(crate) record: Option<Record>,
    /// When the first of the looks since then that have failed was begun.
    failing_since: Option<Instant>,
    /// The error of the latest look, if looks have failed for [`MAX_OUTAGE`].
    pub(crate) error: Option<Arc<StoreError>>,
}

impl Update {
    fn new(record: Option<Record>) -> Self {
        Self { record, failing_since: None, error: None }
    }

    /// Returns `false` if the record is final or was evicted. Its followers may not have read it.
    fn may_change(&self) -> bool {
        self.error.is_some() || self.record.as_ref().is_some_and(|record| !record.state.is_final())
    }
}

/// Maximum time between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum time between two looks, so that many changes share one.
const MIN_INTERVAL: Duration = Duration::from_millis(2);
/// Minimum time between two looks at all tasks. Every job that ends in another process causes one.
const MIN_INTERVAL_OF_ALL: Duration = Duration::from_millis(50);
/// Time after which followers get the error of looks that fail. A failover takes less.
const MAX_OUTAGE: Duration = Duration::from_secs(30);
/// Maximum number of records in one query. A result may have 64 KiB.
const MAX_BATCH: usize = 100;

/// Receives the updates of one record.
pub(crate) struct Follower {
    id: TaskId,
    pub(crate) updates: watch::Receiver<Update>,
    followers: Arc<Followers>,
}

impl Followers {
    /// Follows a record. The first caller starts the task that looks at the store.
    pub(crate) fn follow(self: &Arc<Self>, record: &Record, writer: &Arc<Writer>) -> Follower {
        let id = record.id;
        let (updates, start) = {
            let mut state = lock(&self.state);
            let sender = state
                .followed
                .entry(id)
                .or_insert_with(|| Arc::new(watch::Sender::new(Update::new(Some(record.clone())))));
            // The caller has just read the record. An error from before would be of no use to it.
            sender.send_if_modified(|update| {
                (update.failing_since, update.error) = (None, None);
                // A job that was retried is not final any longer, and is looked at again.
                let is_newer = update.record.as_ref().is_some_and(|known| known.version < record.version);
                if is_newer && !update.may_change() {
                    update.record = Some(record.clone());
                }
                false
            });
            let mut updates = sender.subscribe();
            updates.mark_changed(); // it may be newer than `record`
            (updates, !std::mem::replace(&mut state.is_looking, true))
        };
        if start {
            tokio::spawn(Looking { followers: self.clone(), writer: writer.clone(), has_ended: false }.run());
        }
        Follower { id, updates, followers: self.clone() }
    }

    /// Returns `true` if the task has followers.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) fn follows(&self, id: TaskId) -> bool {
        lock(&self.state).followed.contains_key(&id)
    }

    /// Reports that a task has changed. Its followers get the record at once.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) fn changed(&self, id: TaskId) {
        let is_followed = {
            let mut state = lock(&self.state);
            let is_followed = state.followed.contains_key(&id);
            if is_followed {
                state.changed.insert(id);
            }
            is_followed
        };
        if is_followed {
            self.wake.notify_one();
        }
    }

    /// Reports that any task may have changed.
    #[cfg_attr(not(feature = "river"), allow(dead_code, reason = "for job queues"))]
    pub(crate) fn look(&self) {
        let is_followed = {
            let mut state = lock(&self.state);
            state.look_at_all = !state.followed.is_empty();
            state.look_at_all
        };
        if is_followed {
            self.wake.notify_one();
        }
    }

    /// Returns the tasks to look at. `None` if there are no followers, so that
    /// the next one starts another instance.
    fn due(&self, next_poll: &mut Instant) -> Option<Vec<TaskId>> {
        let mut state = lock(&self.state);
        let is_poll = *next_poll <= Instant::now();
        if is_poll {
            // Two followers that leave at the same time may each have seen the other.
            state.followed.retain(|_, updates| updates.receiver_count() > 0);
        }
        if state.followed.is_empty() {
            state.is_looking = false;
            return None;
        }
        let mut changed = std::mem::take(&mut state.changed);
        if !is_poll {
            if std::mem::take(&mut state.look_at_all) {
                // `next_poll` is an interval after the last look at all tasks.
                let earliest = (*next_poll + MIN_INTERVAL_OF_ALL).checked_sub(POLL_INTERVAL).unwrap_or(*next_poll);
                *next_poll = (*next_poll).min(earliest.max(Instant::now()));
            }
            changed.retain(|id| state.followed.get(id).is_some_and(|updates| updates.borrow().may_change()));
            return Some(changed.into_iter().collect());
        }
        state.look_at_all = false;
        *next_poll = Instant::now() + POLL_INTERVAL;
        let may_change = state.followed.iter().filter(|(_, updates)| updates.borrow().may_change());
        Some(may_change.map(|(id, _)| *id).collect())
    }

    /// Publishes the result of a look, or its error and when it was begun.
    fn send(&self, id: TaskId, found: Result<Option<Record>, (Instant, Arc<StoreError>)>) {
        // The wakers of the receivers are user code, so they run outside of the lock.
        let Some(sender) = lock(&self.state).followed.get(&id).cloned() else { return };
        ignore_panic(|| {
            sender.send_if_modified(|update| match found {
                // Compares whole records, because equal versions may differ: a cancel request
                // increments the version, and so does the process of the task, which may not have
                // seen the request.
                Ok(record) => {
                    let is_new = update.record != record || update.error.is_some();
                    *update = Update::new(record);
                    is_new
                }
                Err((begun, error)) => {
                    let since = *update.failing_since.get_or_insert(begun);
                    update.error = (since.elapsed() >= MAX_OUTAGE).then_some(error);
                    update.error.is_some()
                }
            });
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut state = lock(&self.followers.state);
        // This receiver is dropped after this function.
        if state.followed.get(&self.id).is_some_and(|sender| sender.receiver_count() <= 1) {
            state.followed.remove(&self.id);
        }
    }
}

/// The task that looks at the store while there are followers.
struct Looking {
    followers: Arc<Followers>,
    writer: Arc<Writer>,
    /// `true` once there are no followers. Another instance may be running then.
    has_ended: bool,
}

impl Looking {
    async fn run(mut self) {
        let mut next_poll = Instant::now() + POLL_INTERVAL;
        loop {
            let _ = timeout_at(next_poll, self.followers.wake.notified()).await;
            let Some(ids) = self.followers.due(&mut next_poll) else {
                self.has_ended = true;
                return;
            };
            for ids in ids.chunks(MAX_BATCH) {
                self.look(ids).await;
            }
            sleep(MIN_INTERVAL).await;
        }
    }

    async fn look(&self, ids: &[TaskId]) {
        let begun = Instant::now();
        match self.writer.get_many(ids).await {
            Ok(found) => ids.iter().zip(found).for_each(|(id, found)| {
                self.followers.send(*id, Ok(found.into_record()));
            }),
            Err(error) => {
                let error = Arc::new(error);
                ids.iter().for_each(|id| self.followers.send(*id, Err((begun, error.clone()))));
            }
        }
    }
}

impl Drop for Looking {
    /// The runtime may shut down. The next follower starts another task.
    fn drop(&mut self) {
        if !self.has_ended {
            lock(&self.followers.state).is_looking = false;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        MemoryStore, Reason, Retention, Subscription, TaskState, TaskStore, Tasks, Timestamp,
        record::Ending,
        store::{Epoch, Filter, Found, Lease, Listing, Op, Page, Process, StoreFuture, Swept, Written},
    };

    /// A store whose records another process writes, and whose reads fail on command.
    struct Other {
        store: MemoryStore,
        lease: Lease,
        fails: AtomicBool,
    }

    impl Other {
        /// Returns the store with a running task, and `Tasks` that do not run it.
        async fn new() -> (Arc<Self>, Tasks, Record) {
            let store = MemoryStore::new();
            let lease = store.begin(&Process::new("other", Timestamp::default())).await.unwrap();
            let mut record = Record::new(TaskId::from_bytes([7; TaskId::BYTES]), "report", Timestamp::default());
            assert!(record.start(Timestamp::default()));
            let accept = [Op::Accept(Box::new(record.clone()))];
            assert_eq!(store.write(lease.epoch, &accept).await.unwrap(), [Written::Done]);
            let other = Arc::new(Self { store, lease, fails: AtomicBool::new(false) });
            (other.clone(), Tasks::new(other), record)
        }

        fn fail(&self, fails: bool) {
            self.fails.store(fails, Relaxed);
        }

        async fn finish(&self, mut record: Record) {
            let now = Timestamp::from(std::time::SystemTime::now()); // so that it is not evicted
            assert!(record.finish(Ending::Cancelled(Reason::Requested, None), now));
            self.store.write(self.lease.epoch, &[Op::Update(Box::new(record))]).await.unwrap();
        }
    }

    impl TaskStore for Other {
        fn begin<'a>(&'a self, process: &'a Process) -> StoreFuture<'a, Lease> {
            self.store.begin(process)
        }

        fn renew(&self, epoch: Epoch) -> StoreFuture<'_, bool> {
            self.store.renew(epoch)
        }

        fn end(&self, epoch: Epoch, now: Timestamp) -> StoreFuture<'_, ()> {
            self.store.end(epoch, now)
        }

        fn write<'a>(&'a self, epoch: Epoch, batch: &'a [Op]) -> StoreFuture<'a, Vec<Written>> {
            self.store.write(epoch, batch)
        }

        fn get(&self, id: TaskId) -> StoreFuture<'_, Found> {
            if self.fails.load(Relaxed) {
                return Box::pin(async { Err(StoreError::unavailable("the server has gone")) });
            }
            self.store.get(id)
        }

        fn list<'a>(&'a self, filter: &'a Filter, page: Page) -> StoreFuture<'a, Listing> {
            self.store.list(filter, page)
        }

        fn cancel_requests(&self, epoch: Epoch) -> StoreFuture<'_, Vec<TaskId>> {
            self.store.cancel_requests(epoch)
        }

        fn sweep<'a>(&'a self, now: Timestamp, retention: &'a Retention) -> StoreFuture<'a, Swept> {
            self.store.sweep(now, retention)
        }
    }

    async fn changed(subscription: &mut Subscription) -> Option<TaskState> {
        subscription.changed().await.unwrap().map(|record| record.state)
    }

    #[tokio::test(start_paused = true)]
    async fn follower_survives_a_store_that_fails_for_seconds() {
        let (store, tasks, record) = Other::new().await;
        let mut subscription = tasks.subscribe(record.id).await.unwrap().unwrap();
        for _ in 0..3 {
            store.fail(true);
            let change = timeout(Duration::from_secs(20), subscription.changed()).await;
            assert!(change.is_err(), "{change:?}");
            store.fail(false);
            assert!(timeout(Duration::from_secs(2), subscription.changed()).await.is_err(), "nothing has changed");
        }
        store.finish(record).await;
        assert_eq!(changed(&mut subscription).await, Some(TaskState::Cancelled));
    }

    #[tokio::test(start_paused = true)]
    async fn follower_gets_the_error_of_a_long_outage() {
        let (store, tasks, record) = Other::new().await;
        let mut subscription = tasks.subscribe(record.id).await.unwrap().unwrap();
        store.fail(true);
        let since = Instant::now();
        assert!(subscription.changed().await.unwrap_err().is_unavailable());
        let failing = since.elapsed();
        assert!(failing >= MAX_OUTAGE && failing <= MAX_OUTAGE + 2 * POLL_INTERVAL, "{failing:?}");
        assert!(subscription.changed().await.unwrap_err().is_unavailable());
        store.fail(false);
        store.finish(record).await;
        assert_eq!(changed(&mut subscription).await, Some(TaskState::Cancelled));
    }

    #[tokio::test(start_paused = true)]
    async fn new_follower_gets_no_earlier_error() {
        let (store, tasks, record) = Other::new().await;
        let mut subscription = tasks.subscribe(record.id).await.unwrap().unwrap();
        store.fail(true);
        subscription.changed().await.unwrap_err();
        store.fail(false);
        let mut new = tasks.subscribe(record.id).await.unwrap().unwrap();
        store.finish(record).await;
        assert_eq!(changed(&mut new).await, Some(TaskState::Cancelled));
    }

    fn record(state: TaskState) -> Record {
        let id = TaskId::generate(Timestamp::default()).expect("random numbers");
        Record { state, ..Record::new(id, "a", Timestamp::default()) }
    }

    /// Adds a record, and returns its id and its only receiver.
    fn follow(followers: &Followers, record: Record) -> (TaskId, watch::Receiver<Update>) {
        let (sender, updates) = watch::channel(Update::new(Some(record.clone())));
        lock(&followers.state).followed.insert(record.id, Arc::new(sender));
        (record.id, updates)
    }

    #[tokio::test(start_paused = true)]
    async fn poll_forgets_tasks_without_followers() {
        let followers = Followers::default();
        let (left, updates) = follow(&followers, record(TaskState::Running));
        let (followed, _updates) = follow(&followers, record(TaskState::Running));
        drop(updates);
        assert_eq!(followers.due(&mut Instant::now()), Some(vec![followed]));
        assert!(!followers.follows(left));
        drop(_updates);
        assert_eq!(followers.due(&mut Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_cannot_change_are_not_read() {
        let followers = Followers::default();
        let (is_final, _updates) = follow(&followers, record(TaskState::Succeeded));
        let (running, _more) = follow(&followers, record(TaskState::Running));
        assert_eq!(followers.due(&mut Instant::now()), Some(vec![running]));
        followers.changed(is_final);
        followers.changed(running);
        let mut next_poll = Instant::now() + POLL_INTERVAL;
        assert_eq!(followers.due(&mut next_poll), Some(vec![running]));
        assert_eq!(followers.due(&mut next_poll), Some(vec![]), "each change is looked at once");
    }

    #[tokio::test(start_paused = true)]
    async fn look_at_all_is_due_soon_and_not_twice() {
        let followers = Followers::default();
        let (_, _updates) = follow(&followers, record(TaskState::Running));
        let now = Instant::now();
        let mut next_poll = now;
        followers.due(&mut next_poll);
        assert_eq!(next_poll, now + POLL_INTERVAL);
        followers.look();
        followers.due(&mut next_poll);
        assert_eq!(next_poll, now + MIN_INTERVAL_OF_ALL);
        tokio::time::advance(POLL_INTERVAL).await;
        followers.look();
        followers.due(&mut next_poll);
        assert!(!lock(&followers.state).look_at_all, "a poll looks at all");
    }
}
