//! Operations of operators: changes of jobs, and queues and kinds that are paused.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use riverqueue::Error;
use tokio::time::Instant;

use super::{
    Jobs,
    client::{validate_kind, validate_queue},
    database::MAX_PAUSED_KINDS,
    error::river_error,
    queue::Queue,
};
use crate::{
    OperationError, StoreError, TaskId,
    operation::{Change, Changes, Pausable, QueueState, Queues},
    sync::{Mutex, lock},
};

/// The kinds that are paused, as this process knows them. They are read from the database every two
/// seconds.
#[derive(Default)]
pub(super) struct PausedKinds {
    kinds: Mutex<HashSet<String>>,
    /// Held while they are read, so that an earlier answer does not replace a later one.
    reading: tokio::sync::Mutex<()>,
    /// When the maintenance next looks for jobs to move back. `None` is at once.
    next_look: Mutex<Option<Instant>>,
}

impl PausedKinds {
    pub(super) fn contains(&self, kind: &str) -> bool {
        lock(&self.kinds).contains(kind)
    }
}

/// Time for which a caller that resumes a kind waits until its jobs are moved back. The maintenance
/// moves the rest.
const MAX_MOVE_TIME: Duration = Duration::from_secs(5);
/// Interval at which the maintenance looks for jobs to move back, unless this process knows of a
/// kind that was resumed. A look reads all jobs that are put aside.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

impl Jobs {
    /// Pauses a queue in all processes, also those of River's clients in other languages. Running
    /// jobs continue. Calling it again has no effect.
    ///
    /// It takes effect at once where River is notified, and otherwise at the next poll of the
    /// queue, after two seconds at most. Jobs that a process has already claimed still start.
    ///
    /// # Errors
    ///
    /// Returns an error if no process has ever worked the queue, or if the
    /// [database](OperationError::store_error) failed.
    pub async fn pause_queue(&self, name: &str) -> Result<(), OperationError> {
        set_paused(self.queue(), Pausable::Queue, name, true).await
    }

    /// Resumes a queue that was [paused](Self::pause_queue).
    ///
    /// # Errors
    ///
    /// Like [`pause_queue`](Self::pause_queue).
    pub async fn resume_queue(&self, name: &str) -> Result<(), OperationError> {
        set_paused(self.queue(), Pausable::Queue, name, false).await
    }

    /// Pauses the jobs of a kind in all processes of this crate, for as long as it is not
    /// [resumed](Self::resume_kind), also after restarts. Running jobs continue. Calling it again
    /// has no effect.
    ///
    /// Other processes learn of it within two seconds. A job of the kind that is then claimed is
    /// put aside, into River's queue `tower_offload_paused`, and keeps its place. The attempt does
    /// not count. So jobs of other kinds are not held up, and each job is claimed once. Its status
    /// does not change.
    ///
    /// A job that is put aside does not count towards its [limit](crate::jobs::Enqueue::at_most),
    /// and waits for it again, behind the others, when the kind is resumed. It keeps its turn in
    /// its [sequence](crate::jobs::Enqueue::sequence), so the jobs behind it wait, of whichever
    /// kind.
    ///
    /// River's clients in other languages do not know of paused kinds: they run the jobs that they
    /// claim, but not those that are put aside. Pause the queue to stop them, too. No worker may
    /// work the queue `tower_offload_paused`.
    ///
    /// # Errors
    ///
    /// Returns an error if the kind is not valid, if 1000 kinds are paused, or if the
    /// [database](OperationError::store_error) failed.
    pub async fn pause_kind(&self, kind: &str) -> Result<(), OperationError> {
        set_paused(self.queue(), Pausable::Kind, kind, true).await
    }

    /// Resumes a kind that was [paused](Self::pause_kind). Its jobs return to their queues, 1000 in
    /// one transaction. After 5 s the maintenance moves the rest, and if this process ends
    /// meanwhile, that of another one does within a minute.
    ///
    /// # Errors
    ///
    /// Like [`pause_kind`](Self::pause_kind).
    pub async fn resume_kind(&self, kind: &str) -> Result<(), OperationError> {
        set_paused(self.queue(), Pausable::Kind, kind, false).await
    }

    /// Returns the queues of River's table, and the kinds that this process works or that are
    /// paused.
    ///
    /// # Errors
    ///
    /// Returns an error if the [database](OperationError::store_error) failed.
    pub async fn queues(&self) -> Result<Queues, OperationError> {
        queues(self.queue()).await
    }
}

/// Changes jobs, and makes the workers and the followers of this process see it.
pub(super) async fn change(queue: &Queue, ids: &[TaskId], change: Change) -> Result<Changes, OperationError> {
    let changing = queue.changing.acquire().await.map_err(|_| OperationError::no_queue())?; // it is never closed
    let (changes, available) = queue.environment.database.change(ids, change).await?;
    drop(changing);
    if changes.changed.is_empty() {
        return Ok(changes);
    }
    let on_end = || changes.changed.iter().for_each(|id| queue.environment.ended.send(*id));
    match change {
        // It may be cancelled again.
        Change::Retry => queue.forget_forwarded(),
        Change::Cancel => {
            queue.cancel_requested.notify_one();
            on_end(); // running jobs are ignored
        }
        Change::Discard => on_end(),
        Change::Reschedule(_) => {}
    }
    available.iter().for_each(|name| queue.wake(name));
    let followers = queue.environment.tasks.followers();
    changes.changed.iter().for_each(|id| followers.changed(*id));
    Ok(changes)
}

pub(super) async fn queues(queue: &Queue) -> Result<Queues, OperationError> {
    let database = &queue.environment.database;
    let (queues, paused) = (database.queues().await?, database.paused_kinds().await?);
    let kinds: BTreeSet<_> = paused.iter().map(String::as_str).chain(queue.plan.kinds().iter().copied()).collect();
    let is_paused = |kind: &str| paused.iter().any(|paused| paused == kind);
    let kinds = kinds.into_iter().map(|kind| QueueState::new(kind, is_paused(kind))).collect();
    Ok(Queues { queues, kinds })
}

pub(super) async fn set_paused(
    queue: &Queue,
    what: Pausable,
    name: &str,
    is_paused: bool,
) -> Result<(), OperationError> {
    match what {
        Pausable::Queue => set_queue_paused(queue, name, is_paused).await,
        Pausable::Kind => set_kind_paused(queue, name, is_paused).await,
    }
}

async fn set_queue_paused(queue: &Queue, name: &str, is_paused: bool) -> Result<(), OperationError> {
    let unknown = || OperationError::unknown_name("no process has worked this queue: start one that does");
    validate_queue(name).map_err(|_| unknown())?;
    let client = queue.client().ok_or_else(|| StoreError::unavailable("the job queue has not started"))?;
    let queues = client.river.queues();
    let set = if is_paused { queues.pause(name).await } else { queues.resume(name).await };
    match set {
        Ok(()) => {}
        Err(Error::NotFound(_)) => return Err(unknown()),
        Err(error) => return Err(river_error(error).into()),
    }
    if !is_paused {
        queue.wake(name);
    }
    Ok(())
}

async fn set_kind_paused(queue: &Queue, kind: &str, is_paused: bool) -> Result<(), OperationError> {
    validate_kind(kind).map_err(|_| OperationError::unknown_name("no such kind of jobs"))?;
    let database = &queue.environment.database;
    if is_paused {
        if !database.pause_kind(kind).await? {
            return Err(OperationError::invalid(format!(
                "{MAX_PAUSED_KINDS} kinds are paused, and more are not allowed: resume one of them"
            )));
        }
        return Ok(read_paused_kinds(queue).await?);
    }
    database.resume_kind(kind).await?;
    read_paused_kinds(queue).await?;
    Ok(move_all_back(queue).await?)
}

/// Reads which kinds are paused.
pub(super) async fn read_paused_kinds(queue: &Queue) -> Result<(), StoreError> {
    let paused = &queue.environment.paused;
    let _reading = paused.reading.lock().await;
    let kinds = queue.environment.database.paused_kinds().await?;
    let kinds = kinds.into_iter().collect();
    let earlier = std::mem::replace(&mut *lock(&paused.kinds), kinds);
    if earlier.iter().any(|kind| !paused.contains(kind)) {
        *lock(&paused.next_look) = None;
    }
    Ok(())
}

/// Moves jobs back if a kind was resumed, and otherwise once a minute.
pub(super) async fn move_back(queue: &Queue) -> Result<(), StoreError> {
    let is_due = lock(&queue.environment.paused.next_look).is_none_or(|next| Instant::now() >= next);
    if is_due { move_all_back(queue).await } else { Ok(()) }
}

/// Moves the jobs back that were put aside and whose kind is not paused any longer, and wakes their
/// workers.
async fn move_all_back(queue: &Queue) -> Result<(), StoreError> {
    let next_look = &queue.environment.paused.next_look;
    // Before the jobs are read, since a kind may be resumed meanwhile.
    *lock(next_look) = Some(Instant::now() + LOOK_INTERVAL);
    let moved = move_batches(queue).await;
    if !matches!(moved, Ok(false)) {
        *lock(next_look) = None;
    }
    moved.map(drop)
}

/// Returns `true` if there may be more.
async fn move_batches(queue: &Queue) -> Result<bool, StoreError> {
    let until = Instant::now() + MAX_MOVE_TIME;
    loop {
        let (queues, has_more) = queue.environment.database.move_back().await?;
        queues.iter().for_each(|name| queue.wake(name));
        if !has_more || Instant::now() >= until {
            return Ok(has_more);
        }
    }
}
