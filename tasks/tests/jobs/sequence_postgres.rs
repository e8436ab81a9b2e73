//! Sequences on Postgres, where transactions are concurrent.

use sqlx::{Connection, PgConnection};
use tower_offload_tasks::{
    TaskState,
    jobs::{Enqueue, Jobs, Unique},
};

use super::{
    databases::OnServer,
    other_client::Report,
    other_languages::without_workers,
    support::{TestDatabase, record},
};

/// Returns River's states of all jobs, in the order of their ids.
async fn states(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar("SELECT state::text FROM river_job ORDER BY id").fetch_all(connection).await.unwrap()
}

async fn execute(connection: &mut PgConnection, statement: &'static str) {
    sqlx::raw_sql(statement).execute(connection).await.unwrap();
}

fn job<'a>(jobs: &'a Jobs, key: &str) -> Enqueue<'a, Report> {
    jobs.enqueue(Report { customer: 7 }).sequence(key)
}

const END_FIRST: &str = "UPDATE river_job SET state = 'completed', finalized_at = now() WHERE id = 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_that_of_the_commits() {
    let Some(server) = OnServer::fresh().await else { return };
    let (mut one, mut two, mut three) = (server.connect().await, server.connect().await, server.connect().await);
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    let mut first = one.begin().await.unwrap();
    let mut second = two.begin().await.unwrap();
    job(&jobs, "a").tx(&mut first).await.unwrap();
    job(&jobs, "a").tx(&mut second).await.unwrap();
    let mut rolled_back = three.begin().await.unwrap();
    job(&jobs, "a").tx(&mut rolled_back).await.unwrap();
    // No lock is held while the transactions are open.
    job(&jobs, "a").await.map(drop).unwrap();
    rolled_back.rollback().await.unwrap();
    second.commit().await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(states(&mut three).await, ["pending", "pending", "available"]);
    execute(&mut three, "UPDATE river_job SET state = 'completed', finalized_at = now() WHERE state = 'available'")
        .await;
    assert_eq!(states(&mut three).await, ["pending", "available", "completed"]);
    execute(&mut three, "UPDATE river_job SET state = 'completed', finalized_at = now() WHERE state = 'available'")
        .await;
    assert_eq!(states(&mut three).await, ["available", "completed", "completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_of_the_head_leaves_the_key_free() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut one = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    let mut transaction = one.begin().await.unwrap();
    job(&jobs, "a").tx(&mut transaction).await.unwrap();
    let mut savepoint = transaction.begin().await.unwrap();
    job(&jobs, "b").tx(&mut savepoint).await.unwrap();
    savepoint.rollback().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(states(&mut one).await, ["available"]);
    let mut transaction = one.begin().await.unwrap();
    job(&jobs, "b").tx(&mut transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    job(&jobs, "b").await.map(drop).unwrap();
    assert_eq!(states(&mut one).await, ["available", "available"]);
    assert_eq!(
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM tower_offload_touched").fetch_one(&mut one).await.unwrap(),
        0
    );
}

/// Each transaction waits at its commit for the locks of both keys, in the same order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_in_opposite_orders_do_not_deadlock() {
    let Some(server) = OnServer::fresh().await else { return };
    let (mut one, mut two) = (server.connect().await, server.connect().await);
    let mut observer = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    for _ in 0..20 {
        let (mut first, mut second) = (one.begin().await.unwrap(), two.begin().await.unwrap());
        for (key, other) in [("a", "b"), ("b", "a")] {
            job(&jobs, key).tx(&mut first).await.unwrap();
            job(&jobs, other).tx(&mut second).await.unwrap();
        }
        let (first, second) = tokio::join!(first.commit(), second.commit());
        first.unwrap();
        second.unwrap();
    }
    let available = "SELECT count(*) FROM river_job WHERE state = 'available'";
    assert_eq!(sqlx::query_scalar::<_, i64>(available).fetch_one(&mut observer).await.unwrap(), 2);
    let heads = "SELECT count(*) FROM tower_offload_sequence WHERE is_admitted";
    assert_eq!(sqlx::query_scalar::<_, i64>(heads).fetch_one(&mut observer).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_with_an_old_snapshot_is_refused() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut one = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let begin = sqlx::AssertSqlSafe(format!("BEGIN ISOLATION LEVEL {level}"));
        let mut transaction = one.begin_with(begin).await.unwrap();
        let error = job(&jobs, "a").tx(&mut transaction).await.unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("READ COMMITTED"), "{error}");
        assert!(error.to_string().contains(level), "{error}");
        transaction.rollback().await.unwrap();
    }
    let insert = "BEGIN ISOLATION LEVEL REPEATABLE READ; \
                  INSERT INTO river_job (kind, max_attempts, args, metadata) VALUES ('a', 1, '{}', '{\"tower_offload:sequence\": \"a\"}'); \
                  COMMIT";
    let error = sqlx::raw_sql(insert).execute(&mut one).await.unwrap_err();
    assert!(error.to_string().contains("must be READ COMMITTED"), "{error}");
}

/// A transaction that has locked the next job may wait for a lock of the one that promotes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_job_is_promoted_later() {
    let Some(server) = OnServer::fresh().await else { return };
    let (mut one, mut two) = (server.connect().await, server.connect().await);
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    for _ in 0..3 {
        job(&jobs, "a").await.map(drop).unwrap();
    }
    let mut lock = two.begin().await.unwrap();
    sqlx::query("SELECT id FROM river_job WHERE id = 2 FOR UPDATE").execute(&mut *lock).await.unwrap();
    execute(&mut one, END_FIRST).await;
    assert_eq!(states(&mut one).await, ["completed", "pending", "pending"]);
    let skipped = "SELECT count(*) FROM tower_offload_sequence WHERE is_skipped AND is_admitted AND river_id = 2";
    assert_eq!(sqlx::query_scalar::<_, i64>(skipped).fetch_one(&mut one).await.unwrap(), 1, "it is the head");
    sqlx::query("UPDATE river_job SET priority = 2 WHERE id = 2").execute(&mut *lock).await.unwrap();
    lock.commit().await.unwrap();
    assert_eq!(states(&mut one).await, ["completed", "available", "pending"]);

    let mut lock = two.begin().await.unwrap();
    sqlx::query("SELECT id FROM river_job WHERE id = 3 FOR UPDATE").execute(&mut *lock).await.unwrap();
    execute(&mut one, "UPDATE river_job SET state = 'cancelled', finalized_at = now() WHERE id = 2").await;
    lock.rollback().await.unwrap();
    // The next tick of the queue promotes it.
    tower_offload_tests::eventually("the job is promoted", async || states(&mut one).await[2] == "available").await;
    assert_eq!(jobs.stats().healed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_table_has_no_members() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut one = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (tasks, jobs) = without_workers(&database).await;
    let id = job(&jobs, "a").hold_on_failure().await.unwrap().id();
    job(&jobs, "a").await.map(drop).unwrap();
    execute(&mut one, "TRUNCATE river_job").await;
    assert_eq!(record(&tasks, id).await.state, TaskState::Lost);
    job(&jobs, "a").await.map(drop).unwrap();
    assert_eq!(states(&mut one).await, ["available"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_job_do_not_change() {
    let Some(server) = OnServer::fresh().await else { return };
    let mut one = server.connect().await;
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    for _ in 0..2 {
        job(&jobs, "a").await.map(drop).unwrap();
    }
    execute(&mut one, "UPDATE river_job SET metadata = '{\"tower_offload:at_most\": {\"key\": \"b\", \"max\": 1}}'")
        .await;
    let keys = "SELECT count(*) FROM river_job WHERE metadata ->> 'tower_offload:sequence' = 'a' AND NOT metadata ? 'tower_offload:at_most'";
    assert_eq!(sqlx::query_scalar::<_, i64>(keys).fetch_one(&mut one).await.unwrap(), 2);
    execute(&mut one, END_FIRST).await;
    assert_eq!(states(&mut one).await, ["completed", "available"]);
}

/// The lock timeout of unique insertions ends before the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_job_waits_for_the_lock_of_its_key() {
    let Some(server) = OnServer::fresh().await else { return };
    let (mut one, mut two) = (server.connect().await, server.connect().await);
    let database = TestDatabase::Postgres(server);
    let (_tasks, jobs) = without_workers(&database).await;
    let mut lock = one.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(1953458020, hashtext('a') & 1023)").execute(&mut *lock).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory' \
                 AND query_start < clock_timestamp() - interval '300 milliseconds'";
    let held = async {
        tower_offload_tests::eventually("the commit waits", async || {
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut two).await.unwrap() == 1
        })
        .await;
        lock.commit().await.unwrap();
    };
    let insertion = async { job(&jobs, "a").unique(Unique::by_content()).await.map(drop).unwrap() };
    tokio::join!(insertion, held);
    assert_eq!(states(&mut two).await, ["available"]);
}
