//! Checks the records of a round.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use tower_offload::{
    CallError,
    pool::{Pool, PoolStats},
};

use crate::{
    job::Plan,
    ledger::{Answer, Entry},
};

/// Number of calls that ended in each way.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) calls: u64,
    pub(crate) started: u64,
    pub(crate) values: u64,
    pub(crate) panics: u64,
    pub(crate) overloaded: u64,
    pub(crate) closed: u64,
    pub(crate) no_runtime: u64,
    pub(crate) left: u64,
}

impl Verdict {
    pub(crate) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.started += other.started;
        self.values += other.values;
        self.panics += other.panics;
        self.overloaded += other.overloaded;
        self.closed += other.closed;
        self.no_runtime += other.no_runtime;
        self.left += other.left;
    }
}

/// Waits until the pool is idle and returns its counters. The round's watchdog limits the wait.
pub(crate) fn settled_stats(pool: &dyn Pool) -> PoolStats {
    loop {
        let stats = pool.admission().stats();
        let PoolStats { active, in_flight, queued, woken, permits_in_use, .. } = stats;
        if (active, in_flight, queued, woken, permits_in_use) == (0, 0, 0, 0, 0) {
            return stats;
        }
        thread::sleep(Duration::from_micros(50)); // counters send no notification
    }
}

/// Returns calls that were not dropped or not answered, or whose panic was not dropped. A pool no
/// longer counts a call when it drops a result without a caller.
pub(crate) fn unsettled(entries: &[Arc<Entry>]) -> Vec<&Arc<Entry>> {
    let has_payload = |it: &Entry| it.plan == Plan::PanicTwice && count(&it.payloads) < count(&it.panicked);
    let settled =
        |it: &Entry| count(&it.dropped) == 1 && count(&it.answered) + count(&it.left) == 1 && !has_payload(it);
    entries.iter().filter(|it| !settled(it)).take(10).collect()
}

/// Checks all records and sums them up.
///
/// # Panics
///
/// Panics if a call was lost, ran twice or was answered wrongly, or if the pool's counters differ
/// from the records.
pub(crate) fn of(name: &str, entries: &[Arc<Entry>], stats: Option<PoolStats>) -> Verdict {
    let mut verdict = Verdict::default();
    let (mut completed, mut panicked) = (0, 0);
    for entry in entries {
        if let Err(fault) = check(entry) {
            panic!("{name}: {fault}: {entry:#?}");
        }
        verdict.calls += 1;
        verdict.started += count(&entry.started);
        verdict.left += count(&entry.left);
        match *entry.answer.lock().unwrap() {
            Some(Answer::Panicked | Answer::Rejected(CallError::Panicked)) => verdict.panics += 1,
            Some(Answer::Rejected(CallError::Closed)) => verdict.closed += 1,
            Some(Answer::Rejected(CallError::NoRuntime)) => verdict.no_runtime += 1,
            Some(Answer::Rejected(_)) => verdict.overloaded += 1,
            Some(Answer::Value(_)) => verdict.values += 1,
            None => {}
        }
        // A future panics on drop in its last poll, after its output, or when it is cancelled.
        let exploded = count(&entry.exploded);
        completed += count(&entry.ended) * (1 - exploded);
        panicked += count(&entry.panicked) + exploded;
    }
    if let Some(stats) = stats {
        let refused = verdict.closed + verdict.no_runtime + verdict.overloaded;
        assert_eq!((stats.started, stats.completed), (verdict.started, completed), "{name}: started, completed");
        assert_eq!(stats.panicked, panicked, "{name}: panicked");
        // Some callers left after their call was rejected, or before it was admitted. It is not
        // recorded which.
        let rejected = refused..=refused + verdict.left;
        assert!(rejected.contains(&stats.rejected), "{name}: {} rejected, not {rejected:?}", stats.rejected);
        assert!(stats.abandoned <= verdict.left, "{name}: {} abandoned of {}", stats.abandoned, verdict.left);
        // Each call that did not end by itself was rejected or abandoned, or its caller left before
        // it was admitted.
        let ended = completed + panicked + stats.rejected + stats.abandoned;
        let at_least = verdict.calls - verdict.left;
        assert!(ended >= at_least, "{name}: {ended} of {} ended", verdict.calls);
    }
    verdict
}

fn check(entry: &Entry) -> Result<(), &'static str> {
    let started = count(&entry.started);
    let failed = count(&entry.panicked) + count(&entry.exploded);
    let planned_payload = u64::from(entry.plan == Plan::PanicTwice) * count(&entry.panicked);
    let answer = *entry.answer.lock().unwrap();
    let fits = match answer {
        Some(Answer::Value(id)) => id == entry.id && count(&entry.ended) == 1 && failed == 0,
        Some(Answer::Panicked | Answer::Rejected(CallError::Panicked)) => started == 1 && failed == 1,
        Some(Answer::Rejected(CallError::Closed)) => count(&entry.ended) == 0, // In any state of the call.
        Some(Answer::Rejected(_)) => started == 0,
        None => true,
    };
    let all = [
        (started <= 1, "started more than once"),
        (count(&entry.ended) <= started, "ended more often than it started"),
        (count(&entry.dropped) == 1, "not dropped once"),
        (count(&entry.payloads) == planned_payload, "the panic's payload was not dropped once"),
        (count(&entry.answered) + count(&entry.left) == 1, "not answered once"),
        (fits, "the answer contradicts the record"),
    ];
    all.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, fault)| Err(fault))
}

fn count(counter: &AtomicU8) -> u64 {
    counter.load(SeqCst).into()
}
