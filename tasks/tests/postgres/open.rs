//! URLs and settings with which a store is opened, or refused with the remedy.

use futures_util::future::join_all;
use tokio::{net::TcpListener, time::timeout};
use tower_offload::Background;
use tower_offload_tasks::{SqlStore, jobs::Jobs};
use tower_offload_tests::ReservedPort;

use super::{
    databases::OnServer,
    support::{LONG, Note, accept, address, execute, forward, jobs, open_error, tasks, text, until_ok},
};

#[tokio::test]
async fn database_with_another_encoding_is_refused() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let options = format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        let Some(database) = OnServer::fresh_with(&options).await else { return };
        let error = text(&open_error(&database.url()).await);
        let url = database.url();
        let names = [encoding, &database.name, address(&url), "ENCODING 'UTF8' TEMPLATE template0"];
        assert!(names.iter().all(|name| error.contains(name)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ipv6_address_in_brackets_is_connected_to() {
    let Some(database) = OnServer::fresh().await else { return };
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return println!("skipped: there is no IPv6") };
    let (url, port) = (database.url(), listener.local_addr().unwrap().port());
    tokio::spawn(forward(listener, address(&url).to_owned()));
    let tasks = tasks(&url.replace(address(&url), &format!("[::1]:{port}"))).await;
    accept(&tasks, &Background::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_refuse_connections_are_skipped() {
    let Some(database) = OnServer::fresh().await else { return };
    let (url, reserved) = (database.url(), ReservedPort::new());
    let closed = reserved.address(); // nothing listens there
    let hosts = format!("{closed},{},{closed}", address(&url));
    let separator = if url.contains('?') { '&' } else { '?' };
    let hosts = url.replace(address(&url), &hosts);
    let tasks = tasks(&format!("{hosts}{separator}target_session_attrs=read-write")).await;
    accept(&tasks, &Background::default()).await.unwrap();

    let nowhere = url.replace(address(&url), &format!("{closed},localhost:1"));
    let error = open_error(&nowhere).await;
    assert!(error.is_unavailable());
    let error = text(&error);
    assert!(error.contains(&closed) && error.contains("localhost:1") && error.contains("refused"), "{error}");
}

/// The kernel accepts connections to the first host, and nothing answers them.
#[tokio::test(flavor = "multi_thread")]
async fn host_that_does_not_answer_is_passed_over_at_once() {
    let Some(database) = OnServer::fresh().await else { return };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = database.url();
    let hosts = url.replace(address(&url), &format!("{},{}", silent.local_addr().unwrap(), address(&url)));
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{hosts}{separator}connect_timeout=60");
    let tasks = timeout(LONG / 2, tasks(&url)).await.expect("waits for the host");
    accept(&tasks, &Background::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_created_in_the_search_path_of_the_url() {
    let Some(database) = OnServer::fresh().await else { return };
    let separator = if database.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-c%20search_path%3Dapp", database.url());
    let error = text(&open_error(&url).await);
    assert!(error.contains("search_path") && error.contains("create one"), "{error}");

    let mut connection = database.connect().await;
    execute(&mut connection, "CREATE SCHEMA app").await;
    let tasks = tasks(&url).await;
    accept(&tasks, &Background::default()).await.unwrap();
    let _accepted = jobs(&tasks).await.enqueue(Note).await.unwrap();
    let query = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(sqlx::query_scalar::<_, i64>(query).fetch_one(&mut connection).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stricter_isolation_refuses_no_accept_and_no_cancel() {
    for level in ["repeatable read", "serializable"] {
        let Some(database) = OnServer::fresh().await else { return };
        let name = &database.name;
        let set = format!("ALTER DATABASE {name} SET default_transaction_isolation = '{level}'");
        execute(&mut database.connect().await, set).await;
        let tasks = tasks(&database.url()).await;
        let jobs = jobs(&tasks).await;
        let all = (0..200).map(async |_| {
            let id = jobs.enqueue(Note).delay(super::support::LONG).await.unwrap().id();
            tasks.cancel(id).await
        });
        let refused: Vec<_> = join_all(all).await.into_iter().filter_map(Result::err).collect();
        assert!(refused.is_empty(), "{level}: {} of 200, such as {}", refused.len(), text(&refused[0]));
    }
}

/// Takes eight seconds, which is how long the store waits for the lock.
#[tokio::test]
async fn held_migration_lock_is_an_error_that_names_its_session() {
    let Some(database) = OnServer::fresh().await else { return };
    let mut holder = database.connect().await;
    execute(&mut holder, "SET application_name = 'stuck'; SELECT pg_advisory_lock(8388076842113)").await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let error = open_error(&database.url()).await;
    assert!(error.is_unavailable());
    let error = text(&error);
    assert!(error.contains("\"stuck\"") && error.contains(&format!("pg_terminate_backend({pid})")), "{error}");
    drop(holder);
    until_ok(async || SqlStore::open(&database.url()).await).await;

    // The lock is needed for migrations only.
    let mut holder = database.connect().await;
    execute(&mut holder, "SELECT pg_advisory_lock(8388076842113)").await;
    SqlStore::open(&database.url()).await.unwrap();
}

/// The job queue has a lock of its own, because River's tables have versions of their own.
#[tokio::test(flavor = "multi_thread")]
async fn held_migration_lock_of_jobs_is_an_error_that_names_its_session() {
    let Some(database) = OnServer::fresh().await else { return };
    let tasks = tasks(&database.url()).await;
    let mut holder = database.connect().await;
    execute(&mut holder, "SET application_name = 'stuck'; SELECT pg_advisory_lock(8388076842114)").await;
    let error = Jobs::builder(&tasks).start().await.map(drop).unwrap_err();
    assert!(error.is_store() && text(&error).contains("\"stuck\""), "{}", text(&error));
    drop(holder);
    until_ok(async || Jobs::builder(&tasks).start().await.map(drop)).await;
}

/// Makes the creation of a trigger, a step of the migration, take eleven seconds.
const SLOW_STEP: &str = "
CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(11); END $$;
CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION slow()";

/// A large table takes longer than any other transaction may take.
#[tokio::test]
async fn migration_may_take_longer_than_other_transactions() {
    let Some(database) = OnServer::fresh().await else { return };
    execute(&mut database.connect().await, SLOW_STEP).await;
    SqlStore::open(&database.url()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn migration_ends_if_the_session_of_its_lock_is_terminated() {
    let Some(database) = OnServer::fresh().await else { return };
    let mut admin = database.connect().await;
    execute(&mut admin, SLOW_STEP).await;
    let url = database.url();
    let opening = tokio::spawn(async move { open_error(&url).await });
    let end = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS ended";
    while sqlx::query_scalar::<_, i64>(end).fetch_one(&mut admin).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    let error = timeout(LONG, opening).await.expect("waits for the migration").unwrap();
    assert!(error.is_unavailable(), "{}", text(&error));
    assert!(text(&error).contains(address(&database.url())), "{}", text(&error));
}

/// The server ends the session of a process that stops within a migration.
#[tokio::test]
async fn lock_of_a_process_that_stops_while_it_migrates_is_released() {
    let Some(database) = OnServer::fresh().await else { return };
    let mut stopped = database.connect().await;
    let lock = "SET idle_in_transaction_session_timeout = '5s'; BEGIN; SELECT pg_advisory_xact_lock(8388076842113)";
    execute(&mut stopped, lock).await;
    SqlStore::open(&database.url()).await.unwrap();
}

#[tokio::test]
async fn missing_database_and_wrong_port_are_named() {
    let Some(database) = OnServer::fresh().await else { return };
    let (url, reserved) = (database.url(), ReservedPort::new());
    let closed = reserved.address(); // nothing listens there
    let error = text(&open_error(&url.replace(&database.name, "no_such_database")).await);
    assert!(error.contains("no_such_database") && error.contains("create the database"), "{error}");
    let error = open_error(&url.replace(address(&url), &closed)).await;
    assert!(error.is_unavailable() && text(&error).contains(&closed), "{}", text(&error));
}
