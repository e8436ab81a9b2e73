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
    adapter::warn,
    error::InsertError,
    insert::{InsertRequest, Inserted, Prepared},
    queue::Queue,
};
use crate::{
    StoreError,
    lease::{RENEWALS, keep_renewed},
};

/// Number of insertions that may wait for a transaction. Further callers wait for space.
pub(super) const INSERT_CHANNEL_CAPACITY: usize = 1024;
/// Maximum number of jobs in one transaction: enough to share the cost of a commit, and few enough
/// to keep it short.
const MAX_INSERT_BATCH: usize = 256;

const MIN_RECOVER_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RECOVER_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which the database is polled for cancel requests of other processes.
const CANCEL_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Delay before progress is written, together with later reports.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);
const PROGRESS_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Interval at which claims are compared with the attempts of this process. It is much longer than
/// the few milliseconds between a claim and its attempt.
const CLAIM_CHECK_INTERVAL: Duration = Duration::from_secs(5);
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Starts the tasks of a queue. They end when maintenance ends.
pub(super) fn spawn(queue: &Arc<Queue>, inserts: [mpsc::Receiver<InsertRequest>; 2]) {
    for requests in inserts {
        tokio::spawn(insert_batches(requests, Arc::downgrade(queue)));
    }
    tokio::spawn(renew_lease(queue.clone()));
    tokio::spawn(watch_client(queue.clone()));
    tokio::spawn(maintain(queue.clone()));
}

/// Inserts jobs. The requests that arrive during a transaction share the next one.
async fn insert_batches(mut receiver: mpsc::Receiver<InsertRequest>, queue: Weak<Queue>) {
    let mut requests = Vec::new();
    while receiver.recv_many(&mut requests, MAX_INSERT_BATCH).await > 0 {
        requests.retain(|request| !request.reply.is_closed()); // their callers were dropped
        if requests.is_empty() {
            continue;
        }
        let Some(queue) = queue.upgrade() else { return };
        let jobs: Vec<_> = requests.iter().map(|request| &request.job).collect();
        let inserted = insert(&queue, &jobs).await;
        let requests = requests.drain(..);
        match inserted {
            Ok(inserted) => requests.zip(inserted).for_each(|(request, inserted)| {
                let _ = request.reply.send(Ok(inserted));
            }),
            Err(error) if requests.len() == 1 || error.is_unrelated_to_jobs() => {
                requests.for_each(|request| drop(request.reply.send(Err(error.duplicate()))));
            }
            // One of the jobs may be invalid, or two of them equal. The others can be inserted.
            Err(_) => {
                for request in requests {
                    let inserted = insert(&queue, &[&request.job]).await;
                    let inserted = inserted.and_then(|mut one| one.pop().ok_or_else(|| no_result().into()));
                    let _ = request.reply.send(inserted);
                }
            }
        }
    }
}

async fn insert(queue: &Queue, jobs: &[&Prepared]) -> Result<Vec<Inserted>, InsertError> {
    let client = queue.client().ok_or_else(|| StoreError::unavailable("the job queue has not started"))?;
    queue.environment.database.insert(&client.river, jobs).await
}

pub(super) fn no_result() -> StoreError {
    StoreError::other("River returned no result for a job")
}

/// Renews the lease of the current client. This is a task of its own, so that no other work delays
/// a renewal.
async fn renew_lease(queue: Arc<Queue>) {
    let Some(lease) = queue.environment.database.lease() else { return };
    loop {
        let Some(client) = queue.client() else { return };
        let Some(id) = client.id() else { return };
        let renewed = keep_renewed(
            lease / RENEWALS,
            || queue.environment.database.renew_lease(id),
            |error, failures| {
                if failures == 1 {
                    warn("failed to renew the lease of the job queue", error);
                }
            },
        );
        tokio::select! {
            () = queue.maintenance_ended() => return,
            () = renewed => queue.replace_client(&client).await,
        }
    }
}

/// Replaces a River client that ends without a shutdown, because one of its required parts failed.
async fn watch_client(queue: Arc<Queue>) {
    loop {
        let Some(client) = queue.client().filter(|client| client.id().is_some()) else { return };
        tokio::select! {
            () = queue.maintenance_ended() => return,
            ended = client.ended() => {
                if queue.is_closed() {
                    return;
                }
                if let Err(error) = ended {
                    warn("River has ended and will be restarted", &error);
                }
                queue.replace_client(&client).await;
            }
        }
        sleep(RESTART_DELAY).await;
    }
}

/// Recovers jobs of crashed processes, forwards cancel requests, requeues lost claims and writes
/// progress. Ends after River, which uses the database until then.
async fn maintain(queue: Arc<Queue>) {
    maintain_until_ended(&queue).await;
    if let Some(client) = queue.client() {
        let _ = client.ended().await; // the shutdown reports the error
    }
    queue.set_ended();
}

async fn maintain_until_ended(queue: &Queue) {
    let (database, progress) = (&queue.environment.database, &queue.environment.progress);
    let recover_interval =
        database.lease().map(|lease| (lease / RENEWALS).clamp(MIN_RECOVER_INTERVAL, MAX_RECOVER_INTERVAL));
    let mut recovery = every(recover_interval.unwrap_or(MAX_RECOVER_INTERVAL));
    let (mut cancel_polls, mut claim_checks) = (every(CANCEL_POLL_INTERVAL), every(CLAIM_CHECK_INTERVAL));
    let mut write_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = queue.maintenance_ended() => return,
            _ = recovery.tick(), if recover_interval.is_some() => {
                let client = queue.client();
                let id = client.as_ref().and_then(|client| client.id());
                if let Err(error) = database.recover(id, queue.plan.backoff).await {
                    warn("failed to recover the jobs of crashed processes", &error);
                }
            }
            _ = cancel_polls.tick() => {
                if let Err(error) = queue.forward_cancel_requests().await {
                    warn("failed to forward cancel requests", &error);
                }
            }
            _ = claim_checks.tick() => {
                if let Err(error) = requeue_lost_claims(queue).await {
                    warn("failed to requeue lost claims", &error);
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

/// Requeues jobs that were claimed for this client although the reply was lost, because the
/// connection failed. River itself would rescue them after an hour.
async fn requeue_lost_claims(queue: &Queue) -> Result<(), StoreError> {
    let Some(client) = queue.client() else { return Ok(()) };
    let Some(id) = client.id() else { return Ok(()) };
    let database = &queue.environment.database;
    let lost = queue.lost_claims(&database.claims(id).await?);
    if lost.is_empty() { Ok(()) } else { database.requeue(&lost, id, queue.plan.backoff).await }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
