#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::{Ending, Record};
use crate::{Failure, Json, Reason, TaskId, TaskState, Timestamp};

#[derive(Debug, Clone)]
enum Change {
    Advance(f64, String),
    Finish(Ending),
    RequestCancel,
    Start,
}

fn changes() -> impl Strategy<Value = Vec<(Change, u64)>> {
    let ending = prop_oneof![
        Just(Ending::Cancelled(Reason::Requested, None)),
        Just(Ending::Failed(Failure::new("class", "message"))),
        Just(Ending::Lost(Reason::ProcessLost)),
        Just(Ending::Succeeded(Json::new(&1).unwrap())),
        Just(Ending::TimedOut),
    ];
    let change = prop_oneof![
        3 => (any::<f64>(), "[\0-z]{0,4}").prop_map(|(progress, message)| Change::Advance(progress, message)),
        1 => ending.prop_map(Change::Finish),
        1 => Just(Change::RequestCancel),
        2 => Just(Change::Start),
    ];
    prop::collection::vec((change, 0..2000_u64), 0..12)
}

proptest! {
    /// The clock may go backwards.
    #[test]
    fn a_record_only_goes_forward_and_a_final_one_not_at_all(changes in changes()) {
        let mut record = Record::new(TaskId::from_bytes([7; 22]), "name", Timestamp::from_millis(1000));
        for (change, now) in changes {
            let (before, now) = (record.clone(), Timestamp::from_millis(now));
            let changed = match change {
                Change::Advance(progress, message) => record.advance(Some(progress), Some(message)),
                Change::Finish(ending) => record.finish(ending, now),
                Change::RequestCancel => record.request_cancel(now),
                Change::Start => record.start(now),
            };
            prop_assert_eq!(record.version, before.version + u64::from(changed));
            if !changed {
                prop_assert_eq!(&record, &before);
            }
            prop_assert!(!before.state.is_final() || !changed);
            prop_assert!(record.state == before.state || before.state.may_become(record.state));
            prop_assert_eq!(record.finished_at.is_some(), record.state.is_final());
            prop_assert_eq!(record.result.is_some(), record.state == TaskState::Succeeded);
            prop_assert!(record.failure.is_some() <= matches!(record.state, TaskState::Failed | TaskState::Cancelled));
            prop_assert!(record.progress.is_none_or(|progress| (0.0..=1.0).contains(&progress)));
            prop_assert!(record.message.as_ref().is_none_or(|message| !message.contains('\0')));
            prop_assert!(record.started_at.is_none_or(|at| at >= record.created_at));
            prop_assert!(record.finished_at.is_none_or(|at| Some(at) >= record.started_at && at >= record.created_at));
        }
    }
}
