//! The requests that were handled, their outcomes, and the responses that were received, by id.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tower_offload::{
    after_response::{Delivery, End, Outcome},
    flush::TrackerStats,
};

use crate::{CONNECTIONS, Options, REQUESTS, work::Work};

/// Timeout for outcomes after all connections have ended.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Accounts>);

#[derive(Debug, Default)]
struct Accounts {
    begun: Vec<u32>,
    outcomes: BTreeMap<u32, Vec<Reported>>,
    received: BTreeSet<u32>,
}

/// The compared parts of an outcome.
#[derive(Debug, Clone, Copy)]
struct Reported {
    end: End,
    delivery: Delivery,
    body_bytes: u64,
}

impl Ledger {
    pub(crate) fn begun(&self, id: u32) {
        self.accounts().begun.push(id);
    }

    pub(crate) fn reported(&self, id: u32, outcome: &Outcome) {
        let Outcome { end, delivery, body_bytes, .. } = *outcome;
        self.accounts().outcomes.entry(id).or_default().push(Reported { end, delivery, body_bytes });
    }

    /// Records that the client received the whole response.
    pub(crate) fn received(&self, id: u32) {
        self.accounts().received.insert(id);
    }

    /// Waits, up to `PATIENCE`, until each request has an outcome.
    pub(crate) async fn all_reported(&self) {
        let all = async {
            let open = |accounts: &Accounts| accounts.outcomes.len() < accounts.begun.len();
            while open(&self.accounts()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all).await; // missing outcomes are errors
    }

    pub(crate) fn errors(&self, options: Options, stats: Option<TrackerStats>, failures: &[String]) -> Vec<String> {
        let accounts = self.accounts();
        let mut errors = Vec::new();
        for id in &accounts.begun {
            let reported = accounts.outcomes.get(id).map_or(&[][..], Vec::as_slice);
            let [Reported { end, delivery, body_bytes }] = reported else {
                errors.push(format!("response {id} has {} outcomes", reported.len()));
                continue;
            };
            let wanted = if options.plain { Delivery::HandedOver } else { Delivery::Flushed };
            let is_flushed = (*end, *delivery) == (End::Complete, wanted) && *body_bytes == Work::new(*id).length as u64;
            if accounts.received.contains(id) && !is_flushed {
                errors
                    .push(format!("response {id} was received but is {end}, {delivery}, {body_bytes} bytes"));
            }
        }
        let expected = (CONNECTIONS * REQUESTS) as usize;
        if !options.cancels {
            errors.extend(failures.iter().cloned());
            if accounts.received.len() != expected {
                errors.push(format!("{} of {expected} responses were received whole", accounts.received.len()));
            }
        }
        if let Some(stats) = stats
            && stats.mismatched + stats.unmapped + stats.gave_up > 0
        {
            errors.push("some responses were not matched with their streams".to_owned());
        }
        errors
    }

    pub(crate) fn summary(&self, stats: Option<TrackerStats>, failures: &[String]) -> String {
        let accounts = self.accounts();
        let mut outcomes = BTreeMap::<String, usize>::new();
        for reported in accounts.outcomes.values().flatten() {
            *outcomes.entry(format!("{}/{}", reported.end, reported.delivery)).or_default() += 1;
        }
        let (begun, received) = (accounts.begun.len(), accounts.received.len());
        let stats = stats.map_or_else(|| "not tracked".to_owned(), |stats| format!("{stats:?}"));
        format!("handled {begun}, received {received}, outcomes {outcomes:?}, failed connections {failures:?}; {stats}")
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
