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
    pub(crate) error: Option<Arc<StoreError>>,
}

impl Update {
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
                .or_insert_with(|| Arc::new(watch::Sender::new(Update { record: Some(record.clone()), error: None })));
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

    fn send(&self, id: TaskId, found: Result<Option<Record>, Arc<StoreError>>) {
        // The wakers of the receivers are user code, so they run outside of the lock.
        let Some(sender) = lock(&self.state).followed.get(&id).cloned() else { return };
        ignore_panic(|| {
            sender.send_if_modified(|update| match found {
                // Compares whole records, because equal versions may differ: a cancel request
                // increments the version, and so does the process of the task, which may not have
                // seen the request.
                Ok(record) => {
                    let is_new = update.record != record || update.error.is_some();
                    *update = Update { record, error: None };
                    is_new
                }
                Err(error) => {
                    update.error = Some(error);
                    true
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
                match self.writer.get_many(ids).await {
                    Ok(found) => ids.iter().zip(found).for_each(|(id, found)| {
                        self.followers.send(*id, Ok(found.into_record()));
                    }),
                    Err(error) => {
                        let error = Arc::new(error);
                        ids.iter().for_each(|id| self.followers.send(*id, Err(error.clone())));
                    }
                }
            }
            sleep(MIN_INTERVAL).await;
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
    use super::*;
    use crate::{TaskState, Timestamp};

    fn record(state: TaskState) -> Record {
        let id = TaskId::generate(Timestamp::default()).expect("random numbers");
        Record { state, ..Record::new(id, "a", Timestamp::default()) }
    }

    /// Adds a record, and returns its id and its only receiver.
    fn follow(followers: &Followers, record: Record) -> (TaskId, watch::Receiver<Update>) {
        let (sender, updates) = watch::channel(Update { record: Some(record.clone()), error: None });
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
