//! Values of arguments and results.

use std::{convert::Infallible, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use sqlx::Connection;
use tokio::sync::Notify;
use tower_offload_tasks::{
    TaskState,
    jobs::{Job, Jobs, Unique},
};

use super::{
    databases::OnServer,
    support::{LONG, TestDatabase, ended, on_each_database},
};

on_each_database! {
    arguments_are_unchanged_or_refused
}

#[derive(Serialize, Deserialize)]
struct Any(Box<RawValue>);

impl Job for Any {
    const KIND: &'static str = "any";
    const MAX_ATTEMPTS: u16 = 1;
}

async fn arguments_are_unchanged_or_refused(database: TestDatabase) {
    let tasks = database.tasks().await;
    let work = |any: Any, _| async { Ok::<_, Infallible>(any.0) };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
    let texts = [
        ("null", true),
        ("{\"\":\"\"}", true),
        ("{\"__proto__\":1}", true),
        ("{\"$serde_json::private::RawValue\":\"1\"}", true),
        ("\"\\ud83d\\ude00\\u2028\\/\"", true),
        (" { \"b\" : [ 1 ,\r\n 2 ], \"a\":0 } ", true),
        (&nested(127), true),
        (&nested(128), false),
        ("\"\\ud800\"", false),
        ("\"\\u0000\"", false),
        ("1e400", false),
        ("{\"tower_offload:content\":1}", false),
    ];
    for (text, is_accepted) in texts {
        let arguments = RawValue::from_string(text.trim().to_owned()).unwrap();
        for is_unique in [false, true] {
            let enqueue = jobs.enqueue(Any(arguments.clone()));
            let enqueue = if is_unique { enqueue.unique(Unique::by_content()) } else { enqueue };
            match enqueue.await {
                Ok(accepted) => {
                    assert!(is_accepted, "{text} is accepted");
                    let result = ended(&tasks, accepted.id()).await.result.expect(text);
                    let expected = serde_json::from_str::<Value>(text).unwrap();
                    assert_eq!(result.parse::<Value>().unwrap(), expected, "{text}");
                }
                Err(error) => assert!(!is_accepted, "{text}: {error}"),
            }
        }
    }
    assert!(jobs.shutdown(LONG).await.is_clean());
}

#[derive(Serialize, Deserialize)]
struct Wei;

impl Job for Wei {
    const KIND: &'static str = "wei";
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outage_at_the_end_of_a_job_rounds_no_result() {
    let Some(server) = OnServer::fresh().await else { return };
    let name = server.name.clone();
    let mut other = sqlx::PgConnection::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let database = TestDatabase::Postgres(server);
    let tasks = database.tasks().await;
    let (started, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let workers = (started.clone(), released.clone());
    let work = move |_: Wei, _| {
        let (started, released) = workers.clone();
        async move {
            started.notify_one();
            released.notified().await;
            Ok::<_, Infallible>((1_u128 << 64) + 1)
        }
    };
    let jobs = Jobs::builder(&tasks).worker(LONG, work).start().await.unwrap();
    let accepted = jobs.enqueue(Wei).await.unwrap();
    started.notified().await;
    for statement in [
        format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut other).await.unwrap();
    }
    released.notify_one();
    tokio::time::sleep(Duration::from_secs(1)).await; // it ends during the outage
    let allow = sqlx::AssertSqlSafe(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    sqlx::raw_sql(allow).execute(&mut other).await.unwrap();
    let record = ended(&tasks, accepted.id()).await;
    assert_eq!(record.state, TaskState::Succeeded);
    assert_eq!(record.result.unwrap().as_str(), "18446744073709551617");
}
