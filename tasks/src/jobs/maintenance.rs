//! Background tasks of a job queue: inserting batches, renewing the lease, replacing the client,
//! and maintaining records.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{
    database::MAX_IMMEDIATE_DELAY,
    error::InsertError,
    events::{self, warn},
    insert::{InsertRequest, Inserted, Prepared},
    operations,
    outcome::End,
    queue::{Environment, Queue},
    running::MAX_LATE_CHECKS,
};
use crate::{StoreError, lease::RENEWALS};

/// Number of insertions that may wait for a transaction. Further callers wait for space.
pub(super) const INSERT_CHANNEL_CAPACITY: usize = 1024;
/// Maximum number of jobs in one transaction: enough to share the cost of a commit, and few enough
/// to keep it short.
const MAX_INSERT_BATCH: usize = 256;

const MIN_RECOVER_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RECOVER_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which the database is polled for cancel requests of processes without a job queue,
/// and for kinds that other processes have paused or resumed.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Delay before progress is written, together with later reports.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);
const PROGRESS_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Interval at which claims are compared with the attempts of this process: a third of a lease
/// within these limits. It is much longer than the few milliseconds between a claim and its
/// attempt.
const MIN_CLAIM_CHECK_INTERVAL: Duration = Duration::from_millis(500);
const MAX_CLAIM_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which scheduled jobs become available, like that of River's scheduler.
const AVAILABLE_INTERVAL: Duration = MAX_IMMEDIATE_DELAY;
/// Interval of checks for jobs that were deleted, and for jobs that no process works on.
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// Maximum time that the insertion of a unique job holds a connection while an equal job is part of
/// another transaction.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);
const LOCKED_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time after which the insertion of a unique job fails, if the other transaction does not end.
const MAX_LOCKED_TIME: Duration = Duration::from_secs(10);

/// Starts the tasks of a queue. They end when maintenance ends.
pub(super) fn spawn(queue: &Arc<Queue>, inserts: InsertReceivers) {
    let InsertReceivers { plain, unique } = inserts;
    let (locked, locked_requests) = mpsc::channel(INSERT_CHANNEL_CAPACITY);
    tokio::spawn(insert_batches(plain, None, Arc::downgrade(queue)));
    tokio::spawn(insert_batches(unique, Some(locked), Arc::downgrade(queue)));
    tokio::spawn(insert_locked(locked_requests, Arc::downgrade(queue)));
    tokio::spawn(maintain(queue.clone()));
    tokio::spawn(listen(queue.clone()));
    #[cfg(feature = "metrics")]
    tokio::spawn(super::backlog::count_waiting(queue.clone()));
}

/// The other ends of the channels of [`InsertSenders`](super::queue::InsertSenders).
pub(super) struct InsertReceivers {
    pub(super) plain: mpsc::Receiver<InsertRequest>,
    pub(super) unique: mpsc::Receiver<InsertRequest>,
}

/// Inserts jobs. The requests that arrive during a transaction share the next one.
///
/// A unique job may equal one in a transaction that has not ended. It is then passed to `locked`,
/// so that it delays no other job.
async fn insert_batches(
    mut receiver: mpsc::Receiver<InsertRequest>,
    locked: Option<mpsc::Sender<LockedRequest>>,
    queue: Weak<Queue>,
) {
    let lock_timeout = locked.is_some().then_some(LOCK_TIMEOUT);
    let mut requests = Vec::new();
    while receiver.recv_many(&mut requests, MAX_INSERT_BATCH).await > 0 {
        requests.retain(|request| !request.reply.is_closed()); // their callers were dropped
        if requests.is_empty() {
            continue;
        }
        let Some(queue) = queue.upgrade() else { return };
        let jobs: Vec<_> = requests.iter().map(|request| &request.job).collect();
        let inserted = insert(&queue, &jobs, lock_timeout).await;
        let requests = requests.drain(..);
        match inserted {
            Ok(inserted) => requests.zip(inserted).for_each(|(request, inserted)| {
                let _ = request.reply.send(Ok(inserted));
            }),
            Err(error) if error.is_unrelated_to_jobs() => {
                requests.for_each(|request| drop(request.reply.send(Err(error.duplicate()))));
            }
            // One of the jobs may be invalid or locked, or two of them equal. The others can be
            // inserted.
            Err(_) => {
                for request in requests {
                    match (insert_one(&queue, &request.job, lock_timeout).await, &locked) {
                        (Err(InsertError::Locked), Some(locked)) => {
                            let until = Instant::now() + MAX_LOCKED_TIME;
                            if let Err(error) = locked.try_send(LockedRequest { request, until }) {
                                let LockedRequest { request, .. } = error.into_inner();
                                let _ = request.reply.send(Err(InsertError::Locked));
                            }
                        }
                        (inserted, _) => drop(request.reply.send(inserted)),
                    }
                }
            }
        }
    }
}

/// A unique job that waits until the transaction with an equal job has ended.
struct LockedRequest {
    request: InsertRequest,
    until: Instant,
}

/// Tries to insert unique jobs until the transactions with equal jobs have ended. It uses one
/// connection, however many there are.
async fn insert_locked(mut receiver: mpsc::Receiver<LockedRequest>, queue: Weak<Queue>) {
    let mut waiting: Vec<LockedRequest> = Vec::new();
    loop {
        if waiting.is_empty() {
            let Some(locked) = receiver.recv().await else { return };
            waiting.push(locked);
        }
        sleep(LOCKED_RETRY_DELAY).await;
        while let Ok(locked) = receiver.try_recv() {
            waiting.push(locked);
        }
        let Some(queue) = queue.upgrade() else { return };
        let mut still_waiting = Vec::new();
        for locked in waiting.drain(..).filter(|locked| !locked.request.reply.is_closed()) {
            match insert_one(&queue, &locked.request.job, Some(LOCK_TIMEOUT)).await {
                Err(InsertError::Locked) if Instant::now() < locked.until => still_waiting.push(locked),
                inserted => drop(locked.request.reply.send(inserted)),
            }
        }
        waiting = still_waiting;
    }
}

async fn insert_one(queue: &Queue, job: &Prepared, lock_timeout: Option<Duration>) -> Result<Inserted, InsertError> {
    insert(queue, &[job], lock_timeout).await?.pop().ok_or_else(|| no_result().into())
}

/// Inserts jobs, and makes the workers of this process claim them.
pub(super) async fn insert(
    queue: &Queue,
    jobs: &[&Prepared],
    lock_timeout: Option<Duration>,
) -> Result<Vec<Inserted>, InsertError> {
    let client = queue.client().ok_or_else(|| StoreError::unavailable("the job queue has not started"))?;
    let inserted = queue.environment.database.insert(&client.river, jobs, lock_timeout).await?;
    for (job, inserted) in jobs.iter().zip(&inserted) {
        if !inserted.is_duplicate {
            queue.environment.counters.enqueued(&job.record.name, &job.queue);
        }
        if job.delay.is_none() {
            queue.wake(&job.queue);
        }
    }
    Ok(inserted)
}

pub(super) fn no_result() -> StoreError {
    StoreError::other("River returned no result for a job")
}

/// Wakes the followers of jobs when jobs of other processes have ended.
async fn listen(queue: Arc<Queue>) {
    let followers = queue.environment.tasks.followers();
    loop {
        tokio::select! {
            () = queue.closed() => return,
            listened = queue.environment.database.listen(|| followers.look()) => {
                if let Err(error) = listened {
                    warn("failed to listen for notifications, records are polled meanwhile", &error);
                }
            }
        }
        sleep(RESTART_DELAY).await;
    }
}

/// Recovers jobs of crashed processes, forwards cancel requests, requeues lost claims and writes
/// progress. Ends after River, which uses the database until then.
async fn maintain(queue: Arc<Queue>) {
    maintain_until_ended(&queue).await;
    queue.environment.counters.set_unserved(0); // another process looks for them
    queue.set_maintenance_over();
    for client in queue.clients() {
        let _ = client.ended().await; // the shutdown reports the error
    }
    queue.set_ended();
}

async fn maintain_until_ended(queue: &Arc<Queue>) {
    let (database, progress) = (&queue.environment.database, &queue.environment.progress);
    let recover_interval =
        database.lease().map(|lease| (lease / RENEWALS).clamp(MIN_RECOVER_INTERVAL, MAX_RECOVER_INTERVAL));
    let mut recovery = every(recover_interval.unwrap_or(MAX_RECOVER_INTERVAL));
    let claim_check_interval = database.lease().map_or(MAX_CLAIM_CHECK_INTERVAL, |lease| {
        (lease / 3).clamp(MIN_CLAIM_CHECK_INTERVAL, MAX_CLAIM_CHECK_INTERVAL)
    });
    let (mut cancel_polls, mut claim_checks) = (every(CANCEL_POLL_INTERVAL), every(claim_check_interval));
    let (mut audits, mut schedules) = (every(AUDIT_INTERVAL), every(AVAILABLE_INTERVAL));
    let mut write_at: Option<Instant> = None;
    loop {
        tokio::select! {
            biased; // so that nothing starts after the end
            () = queue.maintenance_ended() => return,
            _ = recovery.tick(), if recover_interval.is_some() => {
                let client = queue.client();
                let id = client.as_ref().and_then(|client| client.id());
                if let Err(error) = database.recover(id.map(|id| &**id), &queue.environment).await {
                    warn("failed to recover the jobs of crashed processes", &error);
                }
            }
            () = queue.cancel_requested.notified() => cancel_polls.reset_immediately(),
            _ = cancel_polls.tick() => {
                if let Err(error) = queue.forward_cancel_requests().await {
                    warn("failed to forward cancel requests", &error);
                }
                if let Err(error) = update_paused_kinds(queue).await {
                    warn("failed to read which kinds of jobs are paused", &error);
                }
            }
            _ = schedules.tick() => {
                if let Err(error) = database.make_available().await {
                    warn("failed to make scheduled jobs available", &error);
                }
            }
            _ = claim_checks.tick() => {
                if let Err(error) = check_claims(queue).await {
                    warn("failed to check the claims of this process", &error);
                }
            }
            _ = audits.tick() => {
                if let Err(error) = audit(queue).await {
                    warn("failed to check for jobs that were deleted, ended without the triggers or have no worker", &error);
                }
            }
            () = progress.changed.notified(), if write_at.is_none() => {
                write_at = Some(Instant::now() + PROGRESS_DELAY);
            }
            () = sleep_until(write_at.unwrap_or_else(Instant::now)), if write_at.is_some() => {
                write_at = None;
                let updates = progress.take();
                if let Err(error) = database.write_progress(&updates).await {
                    progress.restore(&updates);
                    write_at = Some(Instant::now() + PROGRESS_RETRY_DELAY);
                    warn("failed to write progress", &error);
                }
            }
        }
    }
}

/// Learns which kinds of jobs other processes have paused or resumed.
async fn update_paused_kinds(queue: &Queue) -> Result<(), StoreError> {
    operations::read_paused_kinds(queue).await?;
    operations::move_back(queue).await
}

/// Compares the claims in the database with the attempts of this process.
///
/// 1. A claim without an attempt: its reply was lost, because the connection failed. It is handed
///    back, and does not count, since its work has not begun. River itself would rescue it after an
///    hour.
/// 2. An attempt that has ended, but whose claim remains: River failed to write its end. It is
///    written here, one by one, so that an end that the database rejects delays no other. If River
///    writes it later, that has no effect.
async fn check_claims(queue: &Arc<Queue>) -> Result<(), StoreError> {
    let Environment { database, running, backoff, .. } = &*queue.environment;
    let claims = queue.claims().await?;
    for claim in running.give_back(&claims) {
        events::given_back(claim.river_id);
        database.write_end(&End::of_claim(claim), *backoff).await?;
    }
    let late = queue.late_ends(&claims, MAX_LATE_CHECKS);
    if database.lease().is_some() {
        queue.replace_stuck_client(&late).await;
    }
    let mut result = Ok(());
    for end in late {
        // A failure does not affect the other ends.
        if let Err(error) = write_late_end(queue, end).await {
            result = Err(error);
        }
    }
    result
}

/// Writes an end in place of River.
pub(super) async fn write_late_end(queue: &Queue, mut end: End) -> Result<(), StoreError> {
    let Environment { database, backoff, tasks, ended, .. } = &*queue.environment;
    match database.write_end(&end, *backoff).await {
        Ok(true) => queue.on_successors(&end),
        Ok(false) => {}
        Err(error) if error.is_unavailable() || error.is_full() => return Err(error),
        Err(error) => {
            events::rejected(end.id, &error);
            end.reject();
            database.write_end(&end, *backoff).await?;
        }
    }
    events::written_late(end.id);
    tasks.followers().changed(end.id);
    ended.send(end.id);
    Ok(())
}

/// Looks for jobs that would never end: their row was deleted or ended without the triggers, or no
/// process has a worker for them.
async fn audit(queue: &Queue) -> Result<(), StoreError> {
    let Environment { database, counters, .. } = &*queue.environment;
    let lost = database.lose_deleted().await?;
    if lost > 0 {
        counters.lost(lost);
        events::lost(lost);
    }
    let copied = database.copy_ends().await?;
    if copied > 0 {
        counters.copied(copied);
        events::copied(copied);
    }
    let healed = database.heal_sequences().await?;
    if healed > 0 {
        counters.healed(healed);
        events::healed(healed);
    }
    let unserved = database.unserved().await?;
    counters.set_unserved(unserved.iter().map(|jobs| u64::try_from(jobs.jobs).unwrap_or_default()).sum());
    for jobs in unserved {
        let oldest = Duration::from_secs(u64::try_from(jobs.oldest).unwrap_or_default());
        events::unserved(&jobs.kind, &jobs.queue, jobs.jobs, oldest);
    }
    Ok(())
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
