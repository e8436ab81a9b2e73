//! What is enqueued, and what is not.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer, ser};
use serde_json::json;
use tower_offload_tasks::{
    Json, TaskState,
    jobs::{Job, Unique},
};

use super::support::{Act, ActAsync, LONG, Place, Stage, ended, on_each_database, record};

on_each_database! {
    what_cannot_be_kept_is_refused_and_nothing_is_there
    of_two_that_should_be_unique_there_is_one
    a_job_of_somebody_else_is_no_answer
    a_job_begins_no_sooner_than_it_may
    many_at_once_are_all_accepted_and_all_done
    nothing_is_taken_after_a_drain
    a_job_of_a_kind_that_nobody_here_knows_waits_for_who_does
}

#[derive(Serialize, Deserialize)]
struct Text(String);

impl Job for Text {
    const KIND: &'static str = "text";
}

#[derive(Deserialize)]
struct Mute;

impl Serialize for Mute {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("there are no words"))
    }
}

impl Job for Mute {
    const KIND: &'static str = "mute";
}

#[derive(Deserialize)]
struct Wild;

impl Serialize for Wild {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("told to")
    }
}

impl Job for Wild {
    const KIND: &'static str = "wild";
}

/// F6
async fn what_cannot_be_kept_is_refused_and_nothing_is_there(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    let large = durable.enqueue(Text("x".repeat(Json::MAX_BYTES))).await.unwrap_err();
    assert!(large.is_content() && large.to_string().contains("larger than 65536 bytes"), "{large}");
    let nul = durable.enqueue(Text("a\0b".to_owned())).await.unwrap_err();
    assert!(nul.is_content() && nul.to_string().contains("NUL"), "{nul}");
    let mute = durable.enqueue(Mute).await.unwrap_err();
    assert!(mute.is_content() && mute.to_string().contains("there are no words"), "{mute}");
    assert!(durable.enqueue(Wild).await.unwrap_err().is_content());
    assert!(durable.enqueue(Text(String::new())).owner("").await.unwrap_err().is_invalid());
    let queue = durable.enqueue(Text(String::new())).queue("no queue has spaces").await.unwrap_err();
    assert!(queue.is_invalid(), "{queue:?}");
    assert!(durable.enqueue(Text(String::new())).max_attempts(0).await.unwrap_err().is_invalid());
    assert_eq!(large.into_response::<bytes::Bytes>().status(), http::StatusCode::UNPROCESSABLE_ENTITY);
    let priority = durable.enqueue(Text(String::new())).priority(9).await.unwrap_err();
    assert!(priority.is_invalid(), "{priority:?}");
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 0);
    assert_eq!(place.number("SELECT count(*) FROM tower_offload_task").await, 0);
    let quotes = durable.enqueue(Text("'; DROP TABLE river_job; --".to_owned())).owner("o'brien").await.unwrap();
    assert_eq!(record(&tasks, quotes.id()).await.owner.as_deref(), Some("o'brien"));
    assert!(durable.drain(LONG).await.is_clean());
}

async fn of_two_that_should_be_unique_there_is_one(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let act = || Act::Return(json!("once"));
    let first = durable.enqueue(act()).unique(Unique::by_content()).await.unwrap();
    let second = durable.enqueue(act()).unique(Unique::by_content()).await.unwrap();
    assert_eq!(first.id(), second.id());
    ended(&tasks, first.id()).await;
    let third = durable.enqueue(act()).unique(Unique::by_content()).await.unwrap();
    assert_eq!((third.id(), third.status().state), (first.id(), TaskState::Succeeded));
    let other = durable.enqueue(Act::Return(json!("other"))).unique(Unique::by_content()).await.unwrap();
    assert_ne!(other.id(), first.id());
    ended(&tasks, other.id()).await;

    // At once, so that several are in one transaction.
    let enqueues = (0..20).map(|_| async { durable.enqueue(Act::Return(json!(7))).unique(Unique::by_content()).await });
    let ids: Vec<_> = futures_util::future::join_all(enqueues).await.into_iter().map(|one| one.unwrap().id()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    ended(&tasks, ids[0]).await;
    assert_eq!(stage.begun.lock().unwrap().len(), 3);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_job_of_somebody_else_is_no_answer(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    let act = || Act::Return(json!("secret"));
    let _of_ann = durable.enqueue(act()).owner("ann").unique(Unique::by_content()).await.unwrap();
    let refused = durable.enqueue(act()).owner("bob").unique(Unique::by_content()).await.unwrap_err();
    assert!(refused.is_duplicate() && !refused.is_store());
    // Also when the record is gone, and only River knows of the job.
    place.execute("DELETE FROM tower_offload_task").await;
    let again = durable.enqueue(act()).owner("bob").unique(Unique::by_content()).await.unwrap_err();
    assert!(again.is_duplicate());
    let _of_ann = durable.enqueue(act()).owner("ann").unique(Unique::by_content()).await.unwrap();
    assert_eq!(refused.into_response::<bytes::Bytes>().status(), http::StatusCode::CONFLICT);
    assert!(durable.drain(LONG).await.is_clean());
}

async fn a_job_begins_no_sooner_than_it_may(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let past = std::time::SystemTime::UNIX_EPOCH;
    let due = durable.enqueue(Act::Return(json!("due"))).at(past).await.unwrap();
    ended(&tasks, due.id()).await;
    assert_eq!(
        place.number("SELECT count(*) FROM river_job WHERE scheduled_at > created_at").await,
        0,
        "as if nothing was said"
    );
    let later = durable.enqueue(Act::Return(json!("later"))).delay(Duration::from_secs(3600)).await.unwrap();
    let now = durable.enqueue(Act::Return(json!("now"))).await.unwrap();
    ended(&tasks, now.id()).await;
    assert_eq!(record(&tasks, later.id()).await.state, TaskState::Queued);
    assert_eq!(stage.begun.lock().unwrap().len(), 2);
    assert!(durable.drain(LONG).await.is_clean());
}

/// F8, for jobs.
async fn many_at_once_are_all_accepted_and_all_done(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    let enqueues = (0..500).map(|number| {
        let (durable, tasks) = (durable.clone(), tasks.clone());
        tokio::spawn(async move {
            let accepted = durable.enqueue(Act::Return(json!(number))).await.unwrap();
            record(&tasks, accepted.id()).await;
            (number, accepted.id())
        })
    });
    for one in futures_util::future::join_all(enqueues).await {
        let (number, id) = one.unwrap();
        let ended = ended(&tasks, id).await;
        assert_eq!(ended.result.unwrap().parse::<u32>().unwrap(), number);
    }
    assert_eq!(stage.begun.lock().unwrap().len(), 500, "each of them once");
    assert!(durable.drain(LONG).await.is_clean());
}

async fn nothing_is_taken_after_a_drain(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    assert!(durable.drain(LONG).await.is_clean());
    assert!(durable.is_closed());
    let refused = durable.enqueue(Act::Fail).await.unwrap_err();
    assert!(refused.is_closed());
    assert_eq!(refused.into_response::<bytes::Bytes>().status(), http::StatusCode::SERVICE_UNAVAILABLE);
}

async fn a_job_of_a_kind_that_nobody_here_knows_waits_for_who_does(place: Place) {
    let tasks = place.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    let unknown = durable.enqueue(Text("for somebody else".to_owned())).await.unwrap();
    let known = durable.enqueue(ActAsync(Act::Return(json!(1)))).await.unwrap();
    ended(&tasks, known.id()).await;
    assert_eq!(record(&tasks, unknown.id()).await.state, TaskState::Queued);
    assert!(durable.drain(LONG).await.is_clean());
}
