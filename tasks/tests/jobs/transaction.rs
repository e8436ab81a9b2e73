//! Jobs in a transaction of the application.

use serde_json::json;
use sqlx::Connection;
use tower_offload_tasks::{TaskState, store::Found};

use super::{
    databases::{OnFile, OnServer},
    support::{Act, LONG, TestDatabase, TestWorkers, ended, on_each_database},
};

on_each_database! {
    job_exists_only_if_its_transaction_commits
}

/// Evaluates the same expression in a transaction of either kind of database.
macro_rules! in_transaction {
    ($database:expr, |$transaction:ident| $work:expr) => {
        match $database {
            TestDatabase::Sqlite(file) => {
                let mut connection = file.connect().await;
                let mut $transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
                $work
            }
            TestDatabase::Postgres(server) => {
                let mut connection = server.connect().await;
                let mut $transaction = connection.begin().await.unwrap();
                $work
            }
        }
    };
}

async fn job_exists_only_if_its_transaction_commits(database: TestDatabase) {
    let tasks = database.tasks().await;
    let workers = TestWorkers::new();
    let jobs = workers.start(&tasks).await;
    database.execute("CREATE TABLE orders (id bigint)").await;
    let id = in_transaction!(&database, |transaction| {
        sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut *transaction).await.unwrap();
        let id = jobs.enqueue(Act::Return(json!(1))).owner("ann").tx(&mut transaction).await.unwrap();
        transaction.rollback().await.unwrap();
        id
    });
    assert_eq!(tasks.get(id).await.unwrap(), Found::Unknown);
    assert!(tasks.accepted(id).await.unwrap().is_none(), "no response for a rolled back job");
    assert_eq!(database.number("SELECT count(*) FROM river_job").await, 0);
    assert_eq!(database.number("SELECT count(*) FROM orders").await, 0);

    let id = in_transaction!(&database, |transaction| {
        sqlx::query("INSERT INTO orders VALUES (1)").execute(&mut *transaction).await.unwrap();
        let id = jobs.enqueue(Act::Return(json!(1))).owner("ann").tx(&mut transaction).await.unwrap();
        assert_eq!(tasks.get(id).await.unwrap(), Found::Unknown, "not visible before the commit");
        transaction.commit().await.unwrap();
        id
    });
    let accepted = tasks.accepted(id).await.unwrap().expect("the job was committed");
    assert_eq!(accepted.location(), &format!("/tasks/{id}"));
    let ended = ended(&tasks, id).await;
    assert_eq!((ended.state, ended.owner.as_deref()), (TaskState::Succeeded, Some("ann")));
    assert_eq!(workers.started.lock().unwrap().len(), 1);
    assert_eq!(database.number("SELECT count(*) FROM orders").await, 1);
    assert!(jobs.shutdown(LONG).await.is_clean());
}

/// A temporary table hides the one of the file from this connection only, so the job would be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_with_a_temporary_table_of_the_same_name_is_rejected() {
    let database = TestDatabase::Sqlite(OnFile::fresh());
    let tasks = database.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let mut connection = sqlx::SqliteConnection::connect(&database.url()).await.unwrap();
    let hide = "CREATE TEMPORARY TABLE river_job AS SELECT * FROM main.river_job";
    sqlx::query(hide).execute(&mut connection).await.unwrap();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = jobs.enqueue(Act::Fail).tx(&mut transaction).await.unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("temporary table"), "{error}");
    transaction.rollback().await.unwrap();
    connection.close().await.unwrap();
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[tokio::test]
async fn transaction_of_another_kind_of_database_is_rejected() {
    let Some(server) = OnServer::fresh().await else { return };
    let file = TestDatabase::Sqlite(OnFile::fresh());
    let tasks = file.tasks().await;
    let jobs = TestWorkers::new().start(&tasks).await;
    let mut connection = server.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    let error = jobs.enqueue(Act::Fail).tx(&mut transaction).await.unwrap_err();
    assert!(error.is_invalid(), "{error:?}");
    drop(transaction);
    assert!(jobs.shutdown(LONG).await.is_clean());
}
