#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{MemoryState, TOMBSTONES_PER_RECORD};
use crate::{
    Json, Reason, Record, TaskId, Timestamp,
    record::Ending,
    store::{Filter, Found, Op, Page, Retention, Written, list::MAX_SCANNED},
};

#[derive(Debug, Clone)]
enum Step {
    Accept(u8),
    Begin,
    Finish(u8),
    Start(u8),
    Sweep { max_records: usize, max_age: u64 },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..40_u8).prop_map(Step::Accept),
        1 => Just(Step::Begin),
        4 => (0..40_u8).prop_map(Step::Finish),
        3 => (0..40_u8).prop_map(Step::Start),
        1 => (0..4_usize, 0..50_u64).prop_map(|(max_records, max_age)| Step::Sweep { max_records, max_age }),
        2 => (0..30_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

#[test]
fn record_at_the_end_of_a_page_is_listed_once() {
    let mut state = MemoryState::new(MAX_SCANNED + 1);
    let owner = Arc::new(());
    let epoch = state.begin(Arc::downgrade(&owner), Timestamp::default());
    for number in 0..=MAX_SCANNED as u64 {
        let mut bytes = [7; TaskId::BYTES];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        // The page reads down to record 1.
        let name = if number < 2 { "needle" } else { "hay" };
        let record = Record::new(TaskId::from_bytes(bytes), name, Timestamp::default());
        state.write(epoch, &Op::Accept(Box::new(record)));
    }
    let (filter, mut page, mut found) = (Filter::default().text("needle"), Page::first(10), Vec::new());
    loop {
        let listing = state.list(&filter, page);
        found.extend(listing.records.iter().map(|record| record.id.as_bytes()[7]));
        let Some(next) = listing.next else { break };
        page = page.after(next);
    }
    assert_eq!(found, [1, 0]);
}

fn id(number: u8) -> TaskId {
    TaskId::from_bytes([number; TaskId::BYTES])
}

proptest! {
    #[test]
    fn only_the_oldest_final_records_are_evicted_with_a_tombstone(steps in steps(), capacity in 1..6_usize) {
        let mut state = MemoryState::new(capacity);
        let mut now = Timestamp::from_millis(1_000_000);
        let mut owner = Arc::new(());
        let mut epoch = state.begin(Arc::downgrade(&owner), now);
        let mut model: HashMap<TaskId, Record> = HashMap::new();
        for step in steps {
            let before: BTreeSet<_> = state.records.keys().copied().collect();
            let mut retention = None;
            match step {
                Step::Accept(number) => {
                    let is_new = !model.contains_key(&id(number));
                    let has_room = before.len() < capacity || !state.finished.is_empty();
                    let record = Record::new(id(number), "", now);
                    if is_new {
                        let written = state.write(epoch, &Op::Accept(Box::new(record.clone())));
                        prop_assert_eq!(written, if has_room { Written::Done } else { Written::Full });
                        if has_room {
                            model.insert(id(number), record);
                        }
                    }
                }
                Step::Begin => {
                    let old = epoch;
                    drop(std::mem::take(&mut owner)); // the owner is gone
                    epoch = state.begin(Arc::downgrade(&owner), now);
                    prop_assert!(epoch > old);
                    model.values_mut().for_each(|record| {
                        record.finish(Ending::Lost(Reason::ProcessLost), now);
                    });
                }
                Step::Start(number) | Step::Finish(number) => {
                    let change = |record: &mut Record| match step {
                        Step::Start(_) => record.start(now),
                        _ => record.finish(Ending::Succeeded(Json::new(&1).unwrap()), now),
                    };
                    let Some(record) = model.get_mut(&id(number)) else { continue };
                    let (was_final, changed) = (record.state.is_final(), change(record));
                    let written = state.write(epoch, &Op::Update(Box::new(record.clone())));
                    match state.records.contains_key(&id(number)) {
                        true => {
                            prop_assert_eq!(written, Written::Done, "also if it was written before");
                            let newer = Record { version: record.version + 1, ..record.clone() };
                            if was_final {
                                let written = state.write(epoch, &Op::Update(Box::new(newer)));
                                prop_assert_eq!(written, Written::Fenced);
                            }
                        }
                        false => prop_assert!(written == Written::Unknown && !changed),
                    }
                }
                Step::Sweep { max_records, max_age } => {
                    let limits = Retention::default()
                        .max_records(max_records)
                        .max_age(Duration::from_millis(max_age))
                        .tombstone_ttl(Duration::from_millis(40));
                    let swept = state.sweep(now, &limits);
                    prop_assert_eq!(swept.evicted as usize, before.len() - state.records.len());
                    retention = Some(limits);
                }
                Step::Wait(millis) => now = now.after(Duration::from_millis(millis)),
            }
            let after: BTreeSet<_> = state.records.keys().copied().collect();
            prop_assert!(after.len() <= capacity && state.tombstones.len() <= TOMBSTONES_PER_RECORD * capacity);
            prop_assert_eq!(state.tombstones.len(), state.tombstone_expiry.len());
            let finished: BTreeSet<_> = state.records.values().filter_map(|(_, r)| Some((r.finished_at?, r.id))).collect();
            prop_assert_eq!(&finished, &state.finished);
            for gone in before.difference(&after) {
                let gone = &model[gone];
                prop_assert!(gone.state.is_final());
                prop_assert!(finished.iter().all(|other| *other >= (gone.finished_at.unwrap(), gone.id)));
                // With the most tombstones, a new one may be the oldest of those of the same time.
                let is_limited = retention.is_some() || state.tombstones.len() == TOMBSTONES_PER_RECORD * capacity;
                let is_forgotten = is_limited && !state.tombstones.contains_key(&gone.id);
                let is_marked = state.get(gone.id) == Found::Evicted { owner: None };
                prop_assert!(is_forgotten || is_marked);
            }
            for kept in &after {
                prop_assert_eq!(&state.records[kept].1, &model[kept]);
                prop_assert!(!state.tombstones.contains_key(kept));
            }
            if let Some(retention) = retention {
                prop_assert!(finished.len() <= retention.max_records);
                prop_assert!(finished.iter().all(|(at, _)| *at >= now.before(retention.max_age)));
                prop_assert!(state.tombstone_expiry.iter().all(|(until, _)| *until > now));
            }
        }
    }

    #[test]
    fn pages_partition_the_list(ids: BTreeSet<u8>, limit in 1..9_usize) {
        let mut state = MemoryState::new(300);
        let owner = Arc::new(());
        let epoch = state.begin(Arc::downgrade(&owner), Timestamp::default());
        for number in &ids {
            state.write(epoch, &Op::Accept(Box::new(Record::new(id(*number), "", Timestamp::default()))));
        }
        let (mut page, mut seen) = (Page::first(limit), Vec::new());
        loop {
            let listing = state.list(&Filter::default(), page);
            prop_assert!(listing.records.len() <= limit);
            seen.extend(listing.records.into_iter().map(|record| record.id.as_bytes()[0]));
            let Some(next) = listing.next else { break };
            page = page.after(next);
        }
        prop_assert_eq!(seen, ids.into_iter().rev().collect::<Vec<_>>());
    }
}
