#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::{Json, Reason, TaskId, Timestamp, record::Ending};

fn record() -> Record {
    Record::new(TaskId::from_bytes([1; TaskId::BYTES]), "report", Timestamp::default())
}

fn events(told: Option<Place>, record: &Record) -> Vec<&'static str> {
    Milestone::after(told, record).iter().map(|milestone| milestone.event).collect()
}

/// F10
#[test]
fn a_record_that_is_over_tells_the_whole_story_with_the_status_of_then() {
    let mut record = record();
    record.start(Timestamp::from_millis(1));
    record.advance(Some(0.5), None);
    record.finish(Ending::Succeeded(Json::new(&1).unwrap()), Timestamp::from_millis(2));
    let story = Milestone::after(None, &record);
    assert_eq!(events(None, &record), ["queued", "started", "finished"]);
    assert_eq!((story[0].status.state, story[0].status.started_at), (TaskState::Queued, None));
    assert_eq!(
        (story[1].status.state, story[1].status.finished_at, &story[1].status.result),
        (TaskState::Running, None, &None)
    );
    assert_eq!(story[2].status, Status::from(&record));
}

#[test]
fn an_attempt_that_goes_back_to_the_queue_is_told_and_the_next_one_too() {
    let mut record = record();
    record.start(Timestamp::default());
    let first = Milestone::after(None, &record).pop().unwrap().place;
    record.state = TaskState::Queued;
    assert_eq!(events(Some(first), &record), ["queued"]);
    let again = Milestone::after(Some(first), &record).pop().unwrap().place;
    assert_eq!(events(Some(again), &record), [""; 0]);
    record.start(Timestamp::default());
    assert_eq!(events(Some(again), &record), ["started"]);
    record.finish(Ending::Lost(Reason::ProcessLost), Timestamp::default());
    assert_eq!(events(Some(again), &record), ["started", "finished"]);
}

#[test]
fn line_breaks_in_a_result_do_not_end_the_event() {
    let mut record = record();
    record.start(Timestamp::default());
    record.finish(Ending::Succeeded(Json::try_from("{\n\r\n\"a\":\n1}".to_owned()).unwrap()), Timestamp::default());
    let mut text = String::new();
    Milestone::after(None, &record).pop().unwrap().write(&mut text);
    let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(text.matches("\n\n").count(), 1);
    assert_eq!(
        serde_json::from_str::<Status>(&data.join("\n")).unwrap().result::<serde_json::Value>().unwrap()["a"],
        1
    );
}

proptest! {
    /// F10: however often somebody looks, and wherever the stream breaks and is taken up again.
    #[test]
    fn each_milestone_is_told_once_and_in_order(steps in proptest::collection::vec((0_u8..6, any::<bool>()), 0..20)) {
        let (mut record, mut told, mut places) = (record(), None, Vec::new());
        for (step, looks) in steps {
            match step {
                0 => { record.start(Timestamp::default()); }
                1 | 2 => { record.advance(Some(f64::from(record.version as u32 % 7) / 7.0), None); }
                3 => { record.request_cancel(Timestamp::default()); }
                4 if record.state == TaskState::Running => { record.state = TaskState::Queued; record.version += 1; }
                _ => { record.finish(Ending::TimedOut, Timestamp::default()); }
            }
            if looks {
                for milestone in Milestone::after(told, &record) {
                    told = Some(milestone.place.to_string().parse::<Place>().unwrap());
                    prop_assert_eq!(told, Some(milestone.place));
                    places.push(milestone.place);
                }
            }
        }
        prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", places);
    }

    #[test]
    fn any_text_is_a_place_or_not(text in "[0-9.x-]{0,30}") {
        let _ = text.parse::<Place>();
    }
}
