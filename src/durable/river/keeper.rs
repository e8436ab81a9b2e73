//! What goes on beside the jobs, for as long as there are some.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::durable::shared::Shared;

/// As the store's own leases: two renewals may fail.
const RENEWALS: u32 = 3;
const RECOVER_AT_LEAST_EVERY: Duration = Duration::from_secs(5);
const RECOVER_AT_MOST_EVERY: Duration = Duration::from_millis(100);
/// How long somebody in another process waits for a job to hear that it is to be cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How much later than it is said progress is written.
const PROGRESS_DELAY: Duration = Duration::from_millis(250);

/// Keeps the lease. In a task of its own, so that nothing slow holds it up.
pub(in crate::durable) async fn keep_lease(shared: Arc<Shared>) {
    let Some(lease) = shared.database.lease() else { return };
    let mut renewals = interval(lease / RENEWALS);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.finished() => return,
            _ = renewals.tick() => {}
        }
        let Some(client) = shared.client() else { return };
        let Some(id) = client.leased_id() else { return };
        match shared.database.renew_client(id).await {
            Ok(true) => {}
            Ok(false) => shared.start_over(&client).await,
            Err(error) => shared.complain("the lease could not be renewed", &error),
        }
    }
}

/// Takes back what processes that are gone have left, hands requests to cancel on, and writes progress.
///
/// It ends when River has: until then the database is ours.
pub(in crate::durable) async fn keep_records(shared: Arc<Shared>) {
    keep_until_finished(&shared).await;
    if let Some(client) = shared.client() {
        let _ = client.ended().await; // whoever waits for that is told by `drain`
    }
}

async fn keep_until_finished(shared: &Shared) {
    let recover_every =
        shared.database.lease().map(|lease| (lease / RENEWALS).clamp(RECOVER_AT_MOST_EVERY, RECOVER_AT_LEAST_EVERY));
    let mut recovers = interval(recover_every.unwrap_or(RECOVER_AT_LEAST_EVERY));
    let mut looks = interval(LOOK_EVERY);
    recovers.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut write_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shared.finished() => return,
            _ = recovers.tick(), if recover_every.is_some() => {
                if let Err(error) = shared.database.recover(shared.plan.backoff).await {
                    shared.complain("jobs of lost processes could not be taken back", &error);
                }
            }
            _ = looks.tick() => {
                if let Err(error) = shared.forward_cancels().await {
                    shared.complain("requests to cancel could not be handed on", &error);
                }
            }
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
