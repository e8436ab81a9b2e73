//! Jobs in a transaction of the caller's.

use serde_json::json;
use sqlx::Connection;
use tower_offload_tasks::{TaskState, store::Found};

use super::{
    databases::{OnFile, OnServer},
    support::{Act, LONG, Place, Stage, ended, on_each_database},
};

on_each_database! {
    a_job_of_a_transaction_is_there_if_that_commits_and_never_was_if_it_does_not
}

/// Runs the same in a transaction on either kind of database.
macro_rules! in_transaction {
    ($place:expr, |$transaction:ident| $work:expr) => {
        match $place {
            Place::File(file) => {
                let mut connection = file.connect().await;
                let mut $transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
                $work
            }
            Place::Server(server) => {
                let mut connection = server.connect().await;
                let mut $transaction = connection.begin().await.unwrap();
                $work
            }
        }
    };
}

async fn a_job_of_a_transaction_is_there_if_that_commits_and_never_was_if_it_does_not(place: Place) {
    let tasks = place.tasks().await;
    let stage = Stage::new();
    let durable = stage.start(&tasks).await;
    place.execute("CREATE TABLE orders (id bigint)").await;
    let id = in_transaction!(&place, |transaction| {
        sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut *transaction).await.unwrap();
        let id = durable.enqueue(Act::Return(json!(1))).owner("ann").tx(&mut transaction).await.unwrap();
        transaction.rollback().await.unwrap();
        id
    });
    assert_eq!(tasks.get(id).await.unwrap(), Found::Unknown);
    assert!(tasks.accepted(id).await.unwrap().is_none(), "no 202");
    assert_eq!(place.number("SELECT count(*) FROM river_job").await, 0);
    assert_eq!(place.number("SELECT count(*) FROM orders").await, 0);

    let id = in_transaction!(&place, |transaction| {
        sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut *transaction).await.unwrap();
        let id = durable.enqueue(Act::Return(json!(1))).owner("ann").tx(&mut transaction).await.unwrap();
        assert_eq!(tasks.get(id).await.unwrap(), Found::Unknown, "not before the commit");
        transaction.commit().await.unwrap();
        id
    });
    let accepted = tasks.accepted(id).await.unwrap().expect("it is committed");
    assert_eq!(accepted.location(), &format!("/tasks/{id}"));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.owner.as_deref()), (TaskState::Succeeded, Some("ann")));
    assert_eq!(stage.begun.lock().unwrap().len(), 1);
    assert_eq!(place.number("SELECT count(*) FROM orders").await, 1);
    assert!(durable.drain(LONG).await.is_clean());
}

#[tokio::test]
async fn a_transaction_of_another_kind_of_database_is_refused() {
    let Some(server) = OnServer::fresh().await else { return };
    let file = Place::File(OnFile::fresh());
    let tasks = file.tasks().await;
    let durable = Stage::new().start(&tasks).await;
    let mut connection = server.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    let refused = durable.enqueue(Act::Fail).tx(&mut transaction).await.unwrap_err();
    assert!(refused.is_invalid(), "{refused:?}");
    drop(transaction);
    assert!(durable.drain(LONG).await.is_clean());
}
