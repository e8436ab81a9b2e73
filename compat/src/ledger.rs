//! What was begun, told and received, by the number of the request.

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

/// How long an outcome may take once everything is over.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Accounts>);

#[derive(Debug, Default)]
struct Accounts {
    begun: Vec<u32>,
    told: BTreeMap<u32, Vec<Told>>,
    received: BTreeSet<u32>,
}

/// Of an outcome.
#[derive(Debug, Clone, Copy)]
struct Told {
    end: End,
    delivery: Delivery,
    body_bytes: u64,
}

impl Ledger {
    pub(crate) fn begun(&self, id: u32) {
        self.accounts().begun.push(id);
    }

    pub(crate) fn told(&self, id: u32, outcome: &Outcome) {
        let Outcome { end, delivery, body_bytes, .. } = *outcome;
        self.accounts().told.entry(id).or_default().push(Told { end, delivery, body_bytes });
    }

    /// The client has all of it.
    pub(crate) fn received(&self, id: u32) {
        self.accounts().received.insert(id);
    }

    /// Waits until each that was begun was told something; not for ever.
    pub(crate) async fn all_told(&self) {
        let all = async {
            let open = |accounts: &Accounts| accounts.told.len() < accounts.begun.len();
            while open(&self.accounts()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all).await; // what is missing is reported
    }

    pub(crate) fn errors(&self, options: Options, stats: Option<Stats>, failures: &[String]) -> Vec<String> {
        let accounts = self.accounts();
        let mut errors = Vec::new();
        for id in &accounts.begun {
            let told = accounts.told.get(id).map_or(&[][..], Vec::as_slice);
            let [Told { end, delivery, body_bytes }] = told else {
                errors.push(format!("response {id} was told {} outcomes", told.len()));
                continue;
            };
            let wanted = if options.plain { Delivery::HandedOver } else { Delivery::Flushed };
            let is_whole = (*end, *delivery) == (End::Complete, wanted) && *body_bytes == Work::new(*id).length as u64;
            if accounts.received.contains(id) && !is_whole {
                errors
                    .push(format!("response {id} was received whole, and told {end}, {delivery}, {body_bytes} bytes"));
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
            errors.push("some responses could not be told from others".to_owned());
        }
        errors
    }

    pub(crate) fn summary(&self, stats: Option<Stats>, failures: &[String]) -> String {
        let accounts = self.accounts();
        let mut outcomes = BTreeMap::<String, usize>::new();
        for told in accounts.told.values().flatten() {
            *outcomes.entry(format!("{}/{}", told.end, told.delivery)).or_default() += 1;
        }
        let (begun, received) = (accounts.begun.len(), accounts.received.len());
        let stats = stats.map_or_else(|| "not tracked".to_owned(), |stats| format!("{stats:?}"));
        format!("begun {begun}, received whole {received}, told {outcomes:?}, connections failed {failures:?}; {stats}")
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
