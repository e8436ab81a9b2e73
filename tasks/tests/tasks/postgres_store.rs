//! The store in Postgres: the suite, and tests of leases, conflicts and lost connections. They are
//! skipped if `DATABASE_URL` is not set.

use std::time::Duration;

use futures_util::future::join_all;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tower_offload::{Background, ThreadPool};
use tower_offload_tasks::{
    Record, Retention, TaskState, TaskStore, Tasks,
    store::{Epoch, Filter, Found, Op, SqlStore, Written},
};
use tower_offload_tests::{ReservedPort, eventually};

use super::{
    databases::OnServer,
    store_suite::{Backend, accept, begin, found, id, now, queued, running, store_suite, succeeded, update},
    support::{done, hold},
};

impl Backend for OnServer {
    type Store = SqlStore;

    async fn fresh() -> Option<Self> {
        Self::fresh().await
    }

    async fn open(&self) -> SqlStore {
        SqlStore::open(&self.url()).await.unwrap()
    }

    async fn lose_process(&self, epoch: Epoch) {
        let expire = "UPDATE tower_offload_process SET expires_at = clock_timestamp() WHERE epoch = $1";
        sqlx::query(expire).bind(i64::from(epoch)).execute(&mut self.connect().await).await.unwrap();
    }

    async fn make_steady(&self, epoch: Epoch) {
        let age =
            "UPDATE tower_offload_process SET steady_since = clock_timestamp() - interval '1 year' WHERE epoch = $1";
        sqlx::query(age).bind(i64::from(epoch)).execute(&mut self.connect().await).await.unwrap();
    }

    async fn age(&self, store: &SqlStore, epoch: Epoch, records: Vec<Record>, age: Duration) {
        let ops: Vec<_> = records.iter().map(accept).collect();
        store.write(epoch, &ops).await.unwrap();
        let age = format!("retained_since = clock_timestamp() - interval '{} seconds'", age.as_secs());
        let ids: Vec<_> = records.iter().map(|record| record.id.as_bytes().to_vec()).collect();
        let statement = sqlx::AssertSqlSafe(format!("UPDATE tower_offload_task SET {age} WHERE id = ANY($1)"));
        sqlx::query(statement).bind(ids).execute(&mut self.connect().await).await.unwrap();
    }
}

store_suite!(OnServer);

#[tokio::test]
async fn records_are_lost_after_the_lease_and_not_before() {
    let Some(backend) = OnServer::fresh().await else { return };
    let (first, second) = (backend.open().await, backend.open().await);
    let epoch = begin(&first).await;
    first.write(epoch, &[accept(&running(1))]).await.unwrap();
    let other = begin(&second).await;
    backend.make_steady(other).await;
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 0);
    assert_eq!(found(&second, 1).await.unwrap().state, TaskState::Running, "read by the other process");
    assert_eq!(second.write(other, &[update(&running(1))]).await.unwrap(), [Written::Fenced]);

    backend.lose_process(epoch).await;
    assert!(first.renew(epoch).await.unwrap(), "no process has ended the epoch");
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 0);

    backend.lose_process(epoch).await;
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 1);
    assert_eq!(found(&first, 1).await.unwrap().state, TaskState::Lost);
    assert!(!first.renew(epoch).await.unwrap());
    assert_eq!(first.write(epoch, &[update(&running(1)), accept(&queued(2))]).await.unwrap(), [Written::Fenced; 2]);
    assert!(second.renew(other).await.unwrap());
}

#[tokio::test]
async fn epoch_with_a_running_write_is_not_lost() {
    let Some(backend) = OnServer::fresh().await else { return };
    let (first, second) = (backend.open().await, backend.open().await);
    let epoch = begin(&first).await;
    first.write(epoch, &[accept(&running(1))]).await.unwrap();
    let mut connection = backend.connect().await;
    let mut writing = connection.begin().await.unwrap();
    let lock = "SELECT 1 FROM tower_offload_process WHERE epoch = $1 FOR KEY SHARE";
    sqlx::query(lock).bind(i64::from(epoch)).execute(&mut *writing).await.unwrap();
    let other = begin(&second).await;
    backend.make_steady(other).await;
    backend.lose_process(epoch).await;
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 0);
    writing.commit().await.unwrap();
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 1);
}

/// The write has checked its epoch, and waits for a row that another transaction has locked.
#[tokio::test]
async fn write_locks_its_epoch_until_the_commit() {
    let Some(backend) = OnServer::fresh().await else { return };
    let (first, second) = (backend.open().await, backend.open().await);
    let epoch = begin(&first).await;
    first.write(epoch, &[accept(&running(1))]).await.unwrap();
    let other = begin(&second).await;
    backend.make_steady(other).await;
    let mut connection = backend.connect().await;
    let mut locking = connection.begin().await.unwrap();
    lock_row(&mut locking, 1).await;
    let writing = tokio::spawn(async move { first.write(epoch, &[update(&succeeded(1, now()))]).await });
    wait_for_a_blocked_session(&backend).await;
    backend.lose_process(epoch).await;
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 0);
    let epochs = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM tower_offload_process");
    assert_eq!(epochs.fetch_one(&mut *locking).await.unwrap(), 2, "the epoch was ended under the write");
    locking.rollback().await.unwrap();
    assert_eq!(writing.await.unwrap().unwrap(), [Written::Done]);
    assert_eq!(second.mark_lost(other, now()).await.unwrap(), 0, "its only record has ended");
    assert_eq!(found(&second, 1).await.unwrap().state, TaskState::Succeeded);
    assert!(!second.renew(epoch).await.unwrap(), "the epoch has ended now");
}

#[tokio::test]
async fn lease_has_its_duration_and_eight_renewals() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = SqlStore::open_with_lease(&backend.url(), Duration::from_secs(8)).await.unwrap();
    let lease = store.begin(&tower_offload_tasks::store::Process::new("nul \0", now())).await.unwrap();
    assert_eq!(lease.renew_every, Some(Duration::from_secs(1)));
    let query = "SELECT expires_at > clock_timestamp() AND expires_at <= clock_timestamp() + interval '8 seconds' \
                 FROM tower_offload_process WHERE epoch = $1";
    let query = sqlx::query_scalar::<_, bool>(query).bind(i64::from(lease.epoch));
    assert!(query.fetch_one(&mut backend.connect().await).await.unwrap());
}

#[tokio::test]
async fn processes_that_start_together_migrate_once() {
    let Some(backend) = OnServer::fresh().await else { return };
    let stores = join_all((0..4).map(|_| backend.open())).await;
    for store in &stores {
        begin(store).await;
    }
    let query = "SELECT count(*) = max(version) AND count(*) > 0 FROM tower_offload_migration";
    let query = sqlx::query_scalar::<_, bool>(query);
    assert!(query.fetch_one(&mut backend.connect().await).await.unwrap(), "one row for each step");

    let newer = "INSERT INTO tower_offload_migration (version, applied_at) VALUES (99, 0)";
    sqlx::query(newer).execute(&mut backend.connect().await).await.unwrap();
    let error = SqlStore::open(&backend.url()).await.unwrap_err();
    assert!(error.to_string().contains("version 99"));
}

#[tokio::test]
async fn tasks_accepted_at_the_same_time_share_commits() {
    let Some(backend) = OnServer::fresh().await else { return };
    let tasks = Tasks::new(backend.open().await);
    let background = Background::builder().pool(ThreadPool::blocking(1)).max_running(1).build();
    let held = hold(&tasks, &background).await; // so that no other task starts and is written again
    let accepts = (0..32).map(|_| tasks.track("x").spawn_blocking(&background, |_| done()));
    assert!(join_all(accepts).await.iter().all(Result::is_ok));
    let query = sqlx::query_scalar::<_, i64>("SELECT count(DISTINCT xmin::text) FROM tower_offload_task");
    let commits = query.fetch_one(&mut backend.connect().await).await.unwrap();
    assert!((1..8).contains(&commits), "33 tasks took {commits} commits");
    held.release();
}

#[tokio::test]
async fn concurrent_updates_of_one_record_keep_the_newest() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = &backend.open().await;
    let epoch = begin(store).await;
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();
    let updates = (2..12).map(|version| {
        let mut record = running(1);
        record.version = version;
        async move { store.write(epoch, &[update(&record)]).await.unwrap() }
    });
    assert!(join_all(updates).await.iter().all(|written| *written == [Written::Done]));
    assert_eq!(found(store, 1).await.unwrap().version, 11);
}

#[tokio::test]
async fn nul_in_a_text_is_replaced_and_does_not_fail_the_batch() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let mut hostile = queued(1);
    (hostile.name, hostile.owner) = ("a\0b".to_owned(), Some("\0".to_owned()));
    assert_eq!(store.write(epoch, &[accept(&hostile), accept(&queued(2))]).await.unwrap(), [Written::Done; 2]);
    assert_eq!(found(&store, 1).await.unwrap().name, "a\u{fffd}b");
    let by_nul = Filter::default().owner("\0");
    assert_eq!(store.list(&by_nul, Default::default()).await.unwrap().records, []);
}

/// The server's clock was set back by two hours after the first two records had ended.
#[tokio::test]
async fn records_that_end_after_the_servers_clock_was_set_back_stay() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = &backend.open().await;
    let epoch = begin(store).await;
    let end = async |number| {
        store.write(epoch, &[accept(&succeeded(number, now()))]).await.unwrap();
    };
    end(1).await;
    end(2).await;
    let set_back = "UPDATE tower_offload_task SET retained_since = retained_since + interval '2 hours'";
    sqlx::query(set_back).execute(&mut backend.connect().await).await.unwrap();
    store.sweep(now(), &Retention::default()).await.unwrap();
    for number in 3..=5 {
        end(number).await;
    }
    for (limit, expected) in [(4, [false, true, true, true, true]), (2, [false, false, false, true, true])] {
        store.sweep(now(), &Retention::default().max_records(limit)).await.unwrap();
        for (number, is_kept) in (1..).zip(expected) {
            assert_eq!(found(store, number).await.is_some(), is_kept, "record {number} of {limit}");
        }
    }
    let hour = Duration::from_secs(3600);
    assert_eq!(store.sweep(now(), &Retention::default().max_age(hour)).await.unwrap().evicted, 0);
}

/// Forwards connections to the server until it is aborted. Holds back all data while `is_silent` is
/// `true`.
async fn forward(listener: TcpListener, server: String, is_silent: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (server, is_silent) = (server.clone(), is_silent.clone());
        connections.spawn(async move {
            let server = TcpStream::connect(server).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::join!(pump(from_client, to_server, is_silent.clone()), pump(from_server, to_client, is_silent));
        });
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_silent: watch::Receiver<bool>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let _ = is_silent.wait_for(|is_silent| !is_silent).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn store_is_unavailable_while_the_server_is_gone() {
    let Some(backend) = OnServer::fresh().await else { return };
    let options: PgConnectOptions = backend.url().parse().unwrap();
    let server = format!("{}:{}", options.get_host(), options.get_port());
    assert!(backend.url().contains(&server), "DATABASE_URL must name host and port");
    let port = ReservedPort::new();
    let listener = TcpListener::bind(port.address()).await.unwrap();
    let is_silent = watch::Sender::new(false);
    let proxy = tokio::spawn(forward(listener, server.clone(), is_silent.subscribe()));
    let store = SqlStore::open(&backend.url().replace(&server, &port.address())).await.unwrap();
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();

    proxy.abort();
    assert!(proxy.await.unwrap_err().is_cancelled());
    assert!(store.write(epoch, &[accept(&queued(2))]).await.unwrap_err().is_unavailable());
    let listener = TcpListener::bind(port.address()).await.unwrap();
    let proxy = tokio::spawn(forward(listener, server, is_silent.subscribe()));
    assert_eq!(store.write(epoch, &[accept(&queued(2))]).await.unwrap(), [Written::Done]);
    assert!(found(&store, 1).await.is_some() && found(&store, 2).await.is_some());
    proxy.abort();
}

/// Returns once a session of this database waits for a lock.
async fn wait_for_a_blocked_session(backend: &OnServer) {
    let mut connection = backend.connect().await;
    let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("a session waits for a lock", async || number(&mut connection, query.to_owned()).await > 0).await;
}

/// Locks a row for the rest of the transaction and returns its version.
async fn lock_row(connection: &mut PgConnection, number: u16) -> i64 {
    let lock = sqlx::query_scalar("SELECT version FROM tower_offload_task WHERE id = $1 FOR UPDATE");
    lock.bind(id(number).as_bytes().to_vec()).fetch_one(connection).await.unwrap()
}

/// Takes ten seconds, which is how long the store waits for a response.
#[tokio::test]
async fn silent_server_times_out_and_is_used_again_later() {
    let Some(backend) = OnServer::fresh().await else { return };
    let options: PgConnectOptions = backend.url().parse().unwrap();
    let server = format!("{}:{}", options.get_host(), options.get_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let is_silent = watch::Sender::new(false);
    let proxy = tokio::spawn(forward(listener, server.clone(), is_silent.subscribe()));
    let store = SqlStore::open(&backend.url().replace(&server, &address.to_string())).await.unwrap();
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();

    let mut connection = backend.connect().await;
    let mut holding = connection.begin().await.unwrap();
    lock_row(&mut holding, 1).await;
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.write(epoch, &[update(&running(1))]).await }
    });
    wait_for_a_blocked_session(&backend).await; // within the transaction
    is_silent.send_replace(true);
    holding.commit().await.unwrap();
    assert!(store.get(id(1)).await.unwrap_err().is_unavailable(), "no connection responds");
    let error = writing.await.unwrap().unwrap_err();
    let source = error.to_string();
    assert!(error.is_unavailable() && source.contains("no response from the server"), "{source}");

    is_silent.send_replace(false);
    assert_eq!(store.write(epoch, &[update(&running(1))]).await.unwrap(), [Written::Done]);
    assert_eq!(found(&store, 1).await.unwrap().state, TaskState::Running);
    proxy.abort();
}

/// Two transactions wait for each other, and the server rolls back that of the store. Choosing it
/// requires the rights of a superuser.
#[tokio::test]
async fn write_that_is_rolled_back_for_a_deadlock_is_retried() {
    let Some(backend) = OnServer::fresh().await else { return };
    let mut other = backend.connect().await;
    // The session that checks for a deadlock first is rolled back. The store checks after five
    // seconds, within which the other session completes the cycle.
    let timeout = sqlx::AssertSqlSafe(format!("ALTER DATABASE {} SET deadlock_timeout = '5s'", backend.name));
    sqlx::query(timeout).execute(&mut other).await.unwrap();
    sqlx::query("SET deadlock_timeout = '1h'").execute(&mut other).await.unwrap();
    let store = backend.open().await;
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1)), accept(&queued(2))]).await.unwrap();

    let mut transaction = other.begin().await.unwrap();
    lock_row(&mut transaction, 2).await;
    let writing = tokio::spawn({
        let store = store.clone();
        let batch = [update(&running(1)), Op::RequestCancel { id: id(2), now: now() }];
        async move { store.write(epoch, &batch).await }
    });
    wait_for_a_blocked_session(&backend).await;
    let before = queued(1).version;
    assert_eq!(lock_row(&mut transaction, 1).await as u64, before, "the update of the store was rolled back");
    transaction.commit().await.unwrap();
    assert_eq!(writing.await.unwrap().unwrap(), [Written::Done; 2]);
    assert_eq!(found(&store, 1).await.unwrap().state, TaskState::Running);
    assert!(found(&store, 2).await.unwrap().cancel_requested_at.is_some());
}

#[tokio::test]
async fn sweep_is_limited_and_so_is_the_number_of_tombstones() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let ops: Vec<_> = (0..1500).map(|number| accept(&succeeded(number, now()))).collect();
    store.write(epoch, &ops).await.unwrap();
    let retention = Retention::default().max_records(100);
    let first = store.sweep(now(), &retention).await.unwrap();
    assert_eq!((first.evicted, first.more), (1000, true));
    let second = store.sweep(now(), &retention).await.unwrap();
    assert_eq!((second.evicted, second.more), (400, false));

    let many = "INSERT INTO tower_offload_tombstone (id, expires_at)
        SELECT convert_to(to_char(number, 'FM0000000000000000000000'), 'UTF8'), 9000000000000 + number FROM generate_series(1, 80000) AS number";
    sqlx::query(many).execute(&mut backend.connect().await).await.unwrap();
    let swept = store.sweep(now(), &retention).await.unwrap();
    assert_eq!((swept.forgotten, swept.more), (1000, true), "the oldest of the 1400");
    assert_eq!(store.sweep(now(), &retention).await.unwrap().forgotten, 400);
    assert_eq!(store.sweep(now(), &retention).await.unwrap().forgotten, 0);
}

/// The application names of the sessions of stores.
const SESSIONS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tower-offload-tasks'";

async fn number(connection: &mut PgConnection, query: String) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(connection).await.unwrap()
}

/// The proxy holds the reply to `BEGIN` until the caller has gone.
#[tokio::test]
async fn caller_dropped_during_begin_leaves_no_open_transaction() {
    let Some(backend) = OnServer::fresh().await else { return };
    let (proxy, url) = super::databases::proxy::Proxy::to(&backend.url()).await;
    let store = SqlStore::open(&url).await.unwrap();
    let epoch = begin(&store).await;
    let retention = Retention::default();
    store.sweep(now(), &retention).await.unwrap(); // the connection was just used, and is not tested
    proxy.hold();
    let dropped = tokio::time::timeout(Duration::from_millis(100), store.sweep(now(), &retention));
    assert!(dropped.await.is_err());
    proxy.resume();
    store.cancel_requests(epoch).await.unwrap();
    let mut connection = backend.connect().await;
    let open = format!("SELECT count(*) {SESSIONS} AND state LIKE 'idle in transaction%'");
    // The session that was closed may still be ending.
    eventually("no session is idle in a transaction", async || number(&mut connection, open.clone()).await == 0).await;
}

/// The table is locked for longer than clients wait for a statement, which they repeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_statements_use_no_more_than_the_documented_connections() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = backend.open().await;
    let tasks = Tasks::new(store.clone());
    tasks.start().await.unwrap();
    let mut connection = backend.connect().await;
    let mut locking = connection.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE tower_offload_task IN ACCESS EXCLUSIVE MODE").execute(&mut *locking).await.unwrap();
    let mut clients = JoinSet::new();
    for client in 0..6 {
        let (tasks, store) = (tasks.clone(), store.clone());
        clients.spawn(async move {
            for _ in 0..3 {
                if client % 2 == 0 {
                    let work = |_| done();
                    drop(tasks.track("x").spawn_blocking(&Background::default(), work).await);
                } else {
                    drop(store.get(id(client)).await);
                }
            }
        });
    }
    let most = async {
        let mut most = 0;
        for _ in 0..250 {
            most = most.max(number(&mut locking, format!("SELECT count(*) {SESSIONS}")).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        most
    };
    assert!(most.await <= 8, "more connections than DATABASES.md says");
    locking.rollback().await.unwrap();
    clients.join_all().await;
    let accepted = tasks.track("x").spawn_blocking(&Background::default(), |_| done()).await;
    assert!(accepted.is_ok() || accepted.is_err_and(|error| error.is_store()), "an outage ends within seconds");
}

/// The table is locked for longer than clients wait for a response, and each that leaves is
/// replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_leave_blocked_reads_add_no_connections() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = backend.open().await;
    let epoch = begin(&store).await;
    store.write(epoch, &[accept(&queued(1))]).await.unwrap();
    let mut connection = backend.connect().await;
    let mut locking = connection.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE tower_offload_task IN ACCESS EXCLUSIVE MODE").execute(&mut *locking).await.unwrap();
    let mut clients = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        clients.spawn(async move {
            for _ in 0..80 {
                drop(tokio::time::timeout(Duration::from_millis(50), store.get(id(1))).await);
            }
        });
    }
    clients.join_all().await;
    let sessions = number(&mut locking, format!("SELECT count(*) {SESSIONS}")).await;
    assert!(sessions <= 8, "{sessions} connections, which is more than DATABASES.md says");
    locking.rollback().await.unwrap();
    assert!(found(&store, 1).await.is_some());
}

#[tokio::test]
async fn dead_connection_is_not_kept_by_callers_that_leave() {
    let Some(backend) = OnServer::fresh().await else { return };
    let (proxy, url) = super::databases::proxy::Proxy::to(&backend.url()).await;
    let store = SqlStore::open(&url).await.unwrap();
    assert!(found(&store, 1).await.is_none());
    let mut connection = backend.connect().await;
    let first = format!("SELECT count(*) {SESSIONS} AND backend_start < '{}'", now_on(&mut connection).await);
    let connections = number(&mut connection, first.clone()).await;
    tokio::time::sleep(Duration::from_millis(1200)).await; // so that the connection is tested
    proxy.hold();
    assert!(tokio::time::timeout(Duration::from_millis(100), store.get(id(1))).await.is_err());
    proxy.resume();
    assert!(found(&store, 1).await.is_none());
    eventually("the connection that did not respond is closed", async || {
        number(&mut connection, first.clone()).await < connections
    })
    .await;
}

async fn now_on(connection: &mut PgConnection) -> String {
    sqlx::query_scalar("SELECT clock_timestamp()::text").fetch_one(connection).await.unwrap()
}

/// Each commit waits for a standby that does not exist, also after its client has given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accept_that_is_committed_late_ends_as_not_accepted() {
    let Some(server) = super::databases::server::OwnServer::start().await else { return };
    let tasks = Tasks::new(SqlStore::open(&server.url()).await.unwrap());
    tasks.start().await.unwrap();
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let mut standby = async |name: &str| {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&mut connection).await.unwrap();
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut connection).await.unwrap();
    };
    standby("nobody").await;
    commits_wait(&server.url()).await;
    let error = tasks.track("x").spawn_blocking(&Background::default(), |_| done()).await.unwrap_err();
    assert!(error.is_store(), "{error}");
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let repeated = format!(
        "SELECT count(*) {SESSIONS} AND (wait_event = 'advisory' OR wait_event = 'SyncRep' AND query = 'COMMIT')"
    );
    eventually("the commit is repeated", async || number(&mut connection, repeated.clone()).await >= 2).await;
    standby("").await;
    eventually("the record is written", async || tasks.stats().open == 0).await;
    let unfinished = "SELECT count(*) FROM tower_offload_task WHERE state < 10".to_owned();
    assert_eq!(number(&mut connection, unfinished).await, 0, "a task that was rejected stays open");
}

/// Waits until commits wait for the standby that was set last. The server reads its settings some
/// time after it was asked to.
async fn commits_wait(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut commit = None;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("commits wait", async || {
        if commit.as_ref().is_none_or(JoinHandle::is_finished) {
            let mut connection = PgConnection::connect(url).await.unwrap();
            commit = Some(tokio::spawn(async move {
                let write = "CREATE TABLE IF NOT EXISTS probe (); DROP TABLE probe";
                let _ = sqlx::raw_sql(write).execute(&mut connection).await;
            }));
        }
        number(&mut connection, waiting.to_owned()).await > 0
    })
    .await;
}

#[tokio::test]
async fn migration_has_no_limit_of_the_role() {
    let Some(backend) = OnServer::fresh().await else { return };
    let limit = format!("ALTER DATABASE {} SET statement_timeout = '1s'", backend.name);
    let mut connection = backend.connect().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(limit)).execute(&mut connection).await.unwrap();
    // Each statement that creates a table takes longer.
    let slow =
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.5); END $$;
        CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION slow()";
    sqlx::raw_sql(slow).execute(&mut connection).await.unwrap();
    backend.open().await;
}

/// A newer version may have states that this one does not know.
#[tokio::test]
async fn row_that_cannot_be_read_hides_no_other() {
    let Some(backend) = OnServer::fresh().await else { return };
    let store = backend.open().await;
    let epoch = begin(&store).await;
    let records: Vec<_> = (1..=4).map(|number| accept(&queued(number))).collect();
    store.write(epoch, &records).await.unwrap();
    let unknown = "UPDATE tower_offload_task SET state = 99 WHERE id = $1";
    sqlx::query(unknown).bind(id(3).as_bytes().to_vec()).execute(&mut backend.connect().await).await.unwrap();
    let found = store.get_many(&[id(1), id(3), id(4)]).await.unwrap();
    assert_eq!(found.iter().filter(|found| **found == Found::Unknown).count(), 1);
    let (mut page, mut ids) = (tower_offload_tasks::store::Page::first(2), Vec::new());
    loop {
        let listing = store.list(&Filter::default(), page).await.unwrap();
        ids.extend(listing.records.iter().map(|record| record.id));
        let Some(next) = listing.next else { break };
        page = page.after(next);
    }
    assert_eq!(ids, [id(4), id(2), id(1)]);
}
