use proptest::prelude::*;

use crate::{
    Json, Reason, Record, Status, TaskId, TaskState, Timestamp,
    record::Ending,
    service::events::{Event, EventId},
};

fn record() -> Record {
    Record::new(TaskId::from_bytes([1; TaskId::BYTES]), "report", Timestamp::default())
}

fn names(last: Option<EventId>, record: &Record) -> Vec<&'static str> {
    Event::after(last, record).iter().map(|event| event.name).collect()
}

#[test]
fn finished_record_yields_all_events_with_their_statuses() {
    let mut record = record();
    record.start(Timestamp::from_millis(1));
    record.advance(Some(0.5), None);
    record.finish(Ending::Succeeded(Json::new(&1).unwrap()), Timestamp::from_millis(2));
    let events = Event::after(None, &record);
    assert_eq!(names(None, &record), ["queued", "started", "finished"]);
    assert_eq!((events[0].status.state, events[0].status.started_at), (TaskState::Queued, None));
    assert_eq!(
        (events[1].status.state, events[1].status.finished_at, &events[1].status.result),
        (TaskState::Running, None, &None)
    );
    assert_eq!(events[2].status, Status::from(&record));
}

#[test]
fn each_attempt_has_its_own_events() {
    let mut record = record();
    record.start(Timestamp::default());
    let first = Event::after(None, &record).pop().unwrap().id;
    record.state = TaskState::Queued;
    assert_eq!(names(Some(first), &record), ["queued"]);
    let requeued = Event::after(Some(first), &record).pop().unwrap().id;
    assert_eq!(names(Some(requeued), &record), [""; 0]);
    record.start(Timestamp::default());
    assert_eq!(names(Some(requeued), &record), ["started"]);
    record.finish(Ending::Lost(Reason::ProcessLost), Timestamp::default());
    assert_eq!(names(Some(requeued), &record), ["started", "finished"]);
}

/// A shutdown hands jobs back, and their attempt does not count.
#[test]
fn attempt_that_is_taken_back_hides_no_later_event() {
    let mut first = record();
    first.start(Timestamp::default());
    let mut second = first.clone();
    second.state = TaskState::Queued;
    second.start(Timestamp::default());
    for mut record in [first, second] {
        let started = Event::after(None, &record).pop().unwrap().id;
        record.state = TaskState::Queued;
        record.attempt -= 1;
        assert_eq!(names(Some(started), &record), ["queued"], "attempt {}", record.attempt);
        let queued = Event::after(Some(started), &record).pop().unwrap().id;
        assert_eq!(names(Some(queued), &record), [""; 0]);
        record.finish(Ending::Cancelled(Reason::Requested, None), Timestamp::default());
        for last in [started, queued] {
            assert_eq!(names(Some(last), &record).last(), Some(&"finished"), "attempt {}", record.attempt);
        }
    }
}

#[test]
fn retried_job_has_later_events_in_the_same_attempt() {
    let mut record = record();
    record.start(Timestamp::default());
    record.finish(Ending::TimedOut, Timestamp::default());
    for _ in 0..2 {
        let finished = Event::after(None, &record).pop().unwrap().id;
        assert_eq!(names(Some(finished), &record), [""; 0]);
        (record.state, record.version) = (TaskState::Queued, record.version + 1);
        assert_eq!(names(Some(finished), &record), ["queued"]);
        let queued = Event::after(Some(finished), &record).pop().unwrap().id;
        record.finish(Ending::Cancelled(Reason::Requested, None), Timestamp::default());
        for last in [finished, queued] {
            assert_eq!(names(Some(last), &record), ["finished"]);
        }
    }
    (record.state, record.version) = (TaskState::Queued, record.version + 1);
    let queued = Event::after(None, &record).pop().unwrap().id;
    record.start(Timestamp::default());
    assert_eq!(names(Some(queued), &record), ["started"]);
}

#[test]
fn line_breaks_in_a_result_do_not_end_the_event() {
    let mut record = record();
    record.start(Timestamp::default());
    record.finish(Ending::Succeeded("{\n\r\n\"a\":\n1}".parse().unwrap()), Timestamp::default());
    let mut text = String::new();
    Event::after(None, &record).pop().unwrap().write(&mut text);
    let data: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(text.matches("\n\n").count(), 1);
    assert_eq!(
        serde_json::from_str::<Status>(&data.join("\n")).unwrap().result::<serde_json::Value>().unwrap()["a"],
        1
    );
}

proptest! {
    /// The stream may break and resume after any event.
    #[test]
    fn each_event_occurs_once_and_in_order(steps in proptest::collection::vec((0_u8..6, any::<bool>()), 0..20)) {
        let (mut record, mut last, mut ids) = (record(), None, Vec::new());
        for (step, is_read) in steps {
            match step {
                0 => { record.start(Timestamp::default()); }
                1 | 2 => { record.advance(Some(f64::from(record.version as u32 % 7) / 7.0), None); }
                3 => { record.request_cancel(Timestamp::default()); }
                4 if record.state != TaskState::Queued => { record.state = TaskState::Queued; record.version += 1; }
                _ => { record.finish(Ending::TimedOut, Timestamp::default()); }
            }
            if is_read {
                for event in Event::after(last, &record) {
                    last = Some(event.id.to_string().parse::<EventId>().unwrap());
                    prop_assert_eq!(last, Some(event.id));
                    ids.push(event.id);
                }
            }
        }
        prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", ids);
    }

    #[test]
    fn parsing_any_text_as_an_event_id_does_not_panic(text in "[0-9.x-]{0,30}") {
        let _ = text.parse::<EventId>();
    }
}
