//! What goes on beside the jobs, for as long as there are some.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

use super::Steady;
use crate::{
    jobs::shared::Shared,
    store::sql::postgres::RENEWALS,
    sync::{Mutex, lock},
};

const RECOVER_AT_LEAST_EVERY: Duration = Duration::from_secs(5);
const RECOVER_AT_MOST_EVERY: Duration = Duration::from_millis(100);
/// How long somebody in another process waits for a job to hear that it is to be cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How much later than it is said progress is written.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);
/// From the claim of a job to its work it is some milliseconds; a claim that is nobody's at two looks never will be.
const LOOK_FOR_ORPHANS_EVERY: Duration = Duration::from_secs(5);
const START_AGAIN: Duration = Duration::from_secs(1);

/// Keeps the lease. In a task of its own, so that nothing slow holds it up.
pub(in crate::jobs) async fn keep_lease(shared: Arc<Shared>, steady: Arc<Mutex<Steady>>) {
    let Some(lease) = shared.database.lease() else { return };
    let mut renewals = every(lease / RENEWALS);
    loop {
        tokio::select! {
            () = shared.finished() => return,
            _ = renewals.tick() => {}
        }
        let Some(client) = shared.client() else { return };
        let Some(id) = client.leased_id() else { return };
        match shared.database.renew_client(id).await {
            Ok(true) => lock(&steady).renewed(Instant::now()),
            Ok(false) => shared.start_over(&client).await,
            Err(error) => {
                lock(&steady).failed();
                shared.complain("the lease could not be renewed", &error);
            }
        }
    }
}

/// Sees to it that there is a client that works. One of River's parts that has to be there may fail, and then all of it ends.
pub(in crate::jobs) async fn keep_client(shared: Arc<Shared>) {
    loop {
        let Some(client) = shared.client().filter(|client| client.leased_id().is_some()) else { return };
        tokio::select! {
            () = shared.finished() => return,
            ended = client.ended() => {
                if shared.is_closed() {
                    return;
                }
                if let Err(error) = ended {
                    shared.complain("River has ended, and begins again", &error);
                }
                shared.start_over(&client).await;
            }
        }
        sleep(START_AGAIN).await;
    }
}

/// Takes back what processes that are gone have left, hands requests to cancel on, and writes progress.
///
/// It ends when River has: until then the database is ours.
pub(in crate::jobs) async fn keep_records(shared: Arc<Shared>, steady: Arc<Mutex<Steady>>) {
    keep_until_finished(&shared, &steady).await;
    if let Some(client) = shared.client() {
        let _ = client.ended().await; // whoever waits for that is told by `drain`
    }
    shared.set_over();
}

async fn keep_until_finished(shared: &Shared, steady: &Mutex<Steady>) {
    let recover_every =
        shared.database.lease().map(|lease| (lease / RENEWALS).clamp(RECOVER_AT_MOST_EVERY, RECOVER_AT_LEAST_EVERY));
    let mut recovers = every(recover_every.unwrap_or(RECOVER_AT_LEAST_EVERY));
    let (mut looks, mut looks_for_orphans) = (every(LOOK_EVERY), every(LOOK_FOR_ORPHANS_EVERY));
    let mut write_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shared.finished() => return,
            _ = recovers.tick(), if recover_every.is_some() => {
                let may_expire = lock(steady).is_steady(Instant::now());
                if let Err(error) = shared.database.recover(may_expire, shared.plan.backoff).await {
                    shared.complain("jobs of lost processes could not be taken back", &error);
                }
            }
            _ = looks.tick() => {
                if let Err(error) = shared.forward_cancels().await {
                    shared.complain("requests to cancel could not be handed on", &error);
                }
            }
            _ = looks_for_orphans.tick() => take_back_orphans(shared).await,
            () = shared.clerk.wake.notified(), if write_at.is_none() => write_at = Some(Instant::now() + PROGRESS_DELAY),
            () = sleep_until(write_at.unwrap_or_else(Instant::now)), if write_at.is_some() => {
                write_at = None;
                let news = shared.clerk.take();
                if let Err(error) = shared.database.report(&news).await {
                    shared.clerk.put_back(&news);
                    write_at = Some(Instant::now() + LOOK_EVERY);
                    shared.complain("progress could not be written", &error);
                }
            }
        }
    }
}

async fn take_back_orphans(shared: &Shared) {
    let Some(client) = shared.client().filter(|client| client.leased_id().is_some()) else { return };
    let taken = async {
        let running = shared.database.claims(client.id()).await?;
        let orphans = shared.orphans(&running);
        if orphans.is_empty() {
            Ok(())
        } else {
            shared.database.take_back(&orphans, client.id(), shared.plan.backoff).await
        }
    };
    if let Err(error) = taken.await {
        shared.complain("claims whose answer was lost could not be taken back", &error);
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
