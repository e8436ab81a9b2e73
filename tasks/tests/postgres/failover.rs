//! Servers that become read-only, stop, restart and hand over to a standby.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::sleep;
use tower_offload::Background;
use tower_offload_tasks::{SqlStore, Tasks};

use super::{
    databases::OnServer,
    programs::Server,
    support::{Note, accept, execute, jobs, open_error, tasks, text, until_ok},
};

/// Enqueues a job and waits until it has run.
async fn run_job(tasks: &Tasks, jobs: &tower_offload_tasks::jobs::Jobs) -> Result<(), String> {
    let id = jobs.enqueue(Note).await.map_err(|error| text(&error))?.id();
    let mut job = tasks.subscribe(id).await.map_err(|error| text(&error))?.ok_or("the job is unknown")?;
    until_ok(async || if job.changed().await?.is_some() { Err(not_finished()) } else { Ok(()) }).await;
    Ok(())
}

fn not_finished() -> tower_offload_tasks::StoreError {
    tower_offload_tasks::StoreError::other("not finished")
}

#[tokio::test(flavor = "multi_thread")]
async fn store_works_again_after_the_server_was_read_only() {
    let Some(database) = OnServer::fresh().await else { return };
    let (name, background) = (database.name.clone(), Background::default());
    let (tasks, mut admin) = (tasks(&database.url()).await, database.connect().await);
    let jobs = jobs(&tasks).await;
    run_job(&tasks, &jobs).await.unwrap();
    // New connections cannot write, like those to a server that is no longer the primary.
    execute(&mut admin, format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
               AND pid <> pg_backend_pid()";
    execute(&mut admin, end).await;
    for _ in 0..10 {
        assert!(accept(&tasks, &background).await.is_err());
        let _ = jobs.enqueue(Note).await;
        sleep(Duration::from_millis(100)).await; // a second of attempts, during which nothing recovers
    }
    let error = accept(&tasks, &background).await.unwrap_err();
    assert!(text(&error).contains("read-only"), "{}", text(&error));

    let write =
        format!("SET default_transaction_read_only = off; ALTER DATABASE {name} RESET default_transaction_read_only");
    execute(&mut admin, write).await;
    until_ok(async || accept(&tasks, &background).await).await;
    until_ok(async || run_job(&tasks, &jobs).await).await;
}

/// Connections that exist become read-only without an error of their own.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_become_read_only_are_replaced() {
    let Some(server) = Server::start() else { return };
    let (tasks, background) = (tasks(&server.url()).await, Background::default());
    let jobs = jobs(&tasks).await;
    let mut admin = PgConnection::connect(&server.url()).await.unwrap();
    for setting in ["on", "off"] {
        execute(&mut admin, "SET default_transaction_read_only = off").await;
        execute(&mut admin, format!("ALTER SYSTEM SET default_transaction_read_only = {setting}")).await;
        execute(&mut admin, "SELECT pg_reload_conf()").await;
        if setting == "on" {
            until_ok(async || accept(&tasks, &background).await.map_or(Ok(()), |()| Err("still writes"))).await;
        }
    }
    until_ok(async || accept(&tasks, &background).await).await;
    until_ok(async || run_job(&tasks, &jobs).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_is_refused_alone_and_followed_after_its_promotion() {
    let Some(primary) = Server::start() else { return };
    let standby = primary.standby();
    let error = open_error(&standby.url()).await;
    assert!(error.is_unavailable());
    assert!(text(&error).contains("read-only") && text(&error).contains(&standby.address()), "{}", text(&error));

    let both = primary.url().replace(&primary.address(), &format!("{},{}", standby.address(), primary.address()));
    let (tasks, background) =
        (Tasks::new(SqlStore::open_with_lease(&both, Duration::from_secs(3)).await.unwrap()), Background::default());
    let jobs = jobs(&tasks).await;
    accept(&tasks, &background).await.unwrap();
    run_job(&tasks, &jobs).await.unwrap();

    primary.crash();
    standby.promote();
    until_ok(async || accept(&tasks, &background).await).await;
    until_ok(async || run_job(&tasks, &jobs).await).await;
    let mut connection = PgConnection::connect(&standby.url()).await.unwrap();
    let finished = "SELECT count(*) FROM tower_offload_task WHERE state = 10 AND river_id IS NOT NULL";
    assert!(sqlx::query_scalar::<_, i64>(finished).fetch_one(&mut connection).await.unwrap() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn store_works_again_after_restarts_of_the_server() {
    let Some(server) = Server::start() else { return };
    let (tasks, background) = (tasks(&server.url()).await, Background::default());
    let jobs = jobs(&tasks).await;
    for mode in ["fast", "immediate", "fast"] {
        server.restart(mode);
        until_ok(async || accept(&tasks, &background).await).await;
        until_ok(async || run_job(&tasks, &jobs).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_connections_are_replaced_within_one_error_each() {
    let Some(database) = OnServer::fresh().await else { return };
    let (tasks, background) = (tasks(&database.url()).await, Background::default());
    let mut admin = database.connect().await;
    for _ in 0..5 {
        accept(&tasks, &background).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = current_database() \
                   AND pid <> pg_backend_pid()";
        execute(&mut admin, end).await;
        let _ = accept(&tasks, &background).await; // on the connection that was used last
        until_ok(async || accept(&tasks, &background).await).await;
    }
}
