//! Leases of processes that share a Postgres database: outages, restarts of the server, slow
//! statements and skewed clocks. Each process is a `Tasks` with a store of its own. The tests are
//! skipped if `DATABASE_URL` is not set. They take real time, because leases go by the server's
//! clock.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use sqlx::{Connection, PgConnection};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_offload::Background;
use tower_offload_tasks::{
    Progress, Reason, Retention, SqlStore, TaskId, TaskState, TaskStore, Tasks,
    store::{Found, Written},
};
use tower_offload_tests::eventually;

use super::{
    databases::{OnServer, proxy::Proxy, server::OwnServer},
    store_suite::{Backend, accept, begin, found, id, now, running, succeeded},
    support::{LONG, background, done, ended, hold, record},
};

/// Lease of the short tests: long enough to be renewed on a busy machine.
const LEASE: Duration = Duration::from_secs(3);

/// A process with tasks that run during the whole test, and clients that submit short ones.
struct Process {
    tasks: Tasks,
    background: Background,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    release: watch::Sender<bool>,
}

/// An accepted task. A short one has a number, by which its runs are counted.
type Accepted = (TaskId, Option<usize>);

/// The processes of a test.
struct Cluster {
    processes: Vec<Process>,
    database: String,
    lease: Duration,
    runs: Arc<Mutex<HashMap<usize, usize>>>,
    next_number: Arc<AtomicUsize>,
}

const LONG_TASKS: usize = 4;
const CLIENTS: usize = 4;

impl Cluster {
    /// Starts processes that reach the database at `url`. The test itself uses `database`.
    async fn start(count: usize, url: &str, database: String, lease: Duration) -> Self {
        let mut processes = Vec::new();
        for number in 0..count {
            let store = SqlStore::open_with_lease(url, lease).await.unwrap();
            // Kept, so that the test can look at each record.
            let retention = Retention::default().max_records(10_000_000);
            let tasks = Tasks::builder(store).retention(retention).process(format!("process {number}")).build();
            tasks.start().await.unwrap();
            let process = Process {
                tasks,
                background: Background::builder().max_tasks(10_000).on_failure(|_| ()).build(),
                accepted: Arc::default(),
                release: watch::Sender::new(false),
            };
            for _ in 0..LONG_TASKS {
                let mut released = process.release.subscribe();
                let work = move |_| async move {
                    let _ = released.wait_for(|released| *released).await;
                    done()
                };
                let long = process.tasks.track("long").spawn(&process.background, work).await.unwrap();
                process.accepted.lock().unwrap().push((long.id(), None));
            }
            processes.push(process);
        }
        Self { processes, database, lease, runs: Arc::default(), next_number: Arc::default() }
    }

    /// Runs `disturb` while clients submit tasks, and continues for the time in which a process
    /// would be judged.
    async fn disturbed(&self, disturb: impl Future<Output = ()>) {
        let (stop, mut clients) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for process in &self.processes {
            for _ in 0..CLIENTS {
                let (tasks, background, accepted) =
                    (process.tasks.clone(), process.background.clone(), process.accepted.clone());
                let (runs, next, stop) = (self.runs.clone(), self.next_number.clone(), stop.clone());
                clients.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let (number, runs) = (next.fetch_add(1, Ordering::Relaxed), runs.clone());
                        let work = move |_| async move {
                            *runs.lock().unwrap().entry(number).or_default() += 1;
                            sleep(Duration::from_millis(5)).await;
                            Ok::<_, Infallible>(number)
                        };
                        if let Ok(task) = tasks.track("short").spawn(&background, work).await {
                            accepted.lock().unwrap().push((task.id(), Some(number)));
                        }
                        sleep(Duration::from_millis(10)).await;
                    }
                });
            }
        }
        sleep(Duration::from_millis(200)).await;
        disturb.await;
        let end = Instant::now();
        self.until_written().await;
        println!("open tasks were written {:?} after the end", end.elapsed());
        sleep((self.lease * 3 / 2).saturating_sub(end.elapsed())).await;
        stop.store(true, Ordering::Relaxed);
        clients.join_all().await;
    }

    /// Waits until the final records of all short tasks that were accepted so far are written.
    async fn until_written(&self) {
        let mut ids = Vec::new();
        for process in &self.processes {
            let accepted = process.accepted.lock().unwrap().clone();
            ids.extend(accepted.iter().filter(|(_, number)| number.is_some()).map(|(id, _)| id.as_bytes().to_vec()));
        }
        let mut connection = connect(&self.database).await;
        let open = "SELECT count(*) FROM tower_offload_task WHERE id = ANY($1) AND state < 10";
        eventually("the final records are written", async || {
            sqlx::query_scalar::<_, i64>(open).bind(&ids).fetch_one(&mut connection).await.unwrap() == 0
        })
        .await;
    }

    /// Ends all tasks, and checks that each accepted one has run exactly once and has succeeded.
    async fn check(self) {
        let mut connection = connect(&self.database).await;
        let lost = "SELECT count(*) FROM tower_offload_task WHERE state = 14";
        assert_eq!(number(&mut connection, lost).await, 0, "a live task was lost");
        let mut total = 0;
        for process in &self.processes {
            process.release.send_replace(true);
            assert!(process.background.shutdown(LONG).await.is_clean());
            assert!(process.tasks.shutdown(LONG).await.is_clean());
            assert_eq!(process.tasks.stats().fenced, 0);
            let accepted = process.accepted.lock().unwrap().clone();
            total += accepted.len();
            let store = process.tasks.store::<SqlStore>().unwrap();
            for (id, number) in accepted {
                let record = store.get(id).await.unwrap().into_record().expect("an accepted task is unknown");
                assert_eq!(record.state, TaskState::Succeeded, "{record:?}");
                let runs = number.map(|number| self.runs.lock().unwrap().get(&number).copied().unwrap_or_default());
                assert!(runs.is_none_or(|runs| runs == 1), "task {number:?} has run {runs:?} times");
            }
        }
        let others = "SELECT count(*) FROM tower_offload_task WHERE state NOT IN (10, 12)";
        assert_eq!(number(&mut connection, others).await, 0, "others were not accepted, and cancelled");
        assert_eq!(number(&mut connection, "SELECT count(*) FROM tower_offload_process").await, 0);
        println!("{total} tasks were accepted, ran once and succeeded");
    }
}

/// Returns the `host:port` of a URL.
fn address(url: &str) -> &str {
    url.split_once('@').unwrap().1.split(['/', '?']).next().unwrap()
}

async fn connect(url: &str) -> PgConnection {
    for _ in 0..500 {
        if let Ok(connection) = PgConnection::connect(url).await {
            return connection;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("the server does not accept connections");
}

async fn number(connection: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(connection).await.unwrap()
}

/// Checks that the only process has a valid lease, until the lease that it has now would have
/// expired without a renewal.
async fn renews_in_time(connection: &mut PgConnection) {
    const EXPIRY: &str = "SELECT expires_at::text FROM tower_offload_process";
    const STATE: &str = "SELECT count(*) FILTER (WHERE expires_at > clock_timestamp()), \
                         clock_timestamp() > $1::timestamptz FROM tower_offload_process";
    let expiry: String = sqlx::query_scalar(EXPIRY).fetch_one(&mut *connection).await.unwrap();
    loop {
        let state = sqlx::query_as::<_, (i64, bool)>(STATE).bind(&expiry).fetch_one(&mut *connection);
        let (valid, would_have_expired) = state.await.unwrap();
        assert_eq!(valid, 1, "the lease has expired");
        if would_have_expired {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the number of rounds of a test that is run by hand.
fn rounds() -> usize {
    std::env::var("TOWER_OFFLOAD_ROUNDS").map_or(100, |rounds| rounds.parse().unwrap())
}

/// Cuts all processes off from the server, alternately with closed and with silent connections.
async fn outages(processes: usize, lease: Duration, outage: Duration, rounds: usize) {
    let Some(server) = OnServer::fresh().await else { return };
    let (proxy, url) = Proxy::to(&server.url()).await;
    let cluster = Cluster::start(processes, &url, server.url(), lease).await;
    for round in 0..rounds {
        println!("round {round}");
        let cut_off = async {
            if round % 2 == 0 {
                proxy.refuse()
            } else {
                proxy.hold()
            }
            sleep(outage).await;
            if round % 4 == 3 {
                proxy.refuse(); // what was held is lost
            }
            proxy.resume();
        };
        cluster.disturbed(cut_off).await;
    }
    cluster.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outage_longer_than_the_lease_loses_no_task_of_one_process() {
    outages(1, LEASE, LEASE * 3 / 2, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outage_longer_than_the_lease_loses_no_task_of_three_processes() {
    outages(3, LEASE, LEASE * 3 / 2, 2).await;
}

#[ignore = "takes 45 s a round; TOWER_OFFLOAD_ROUNDS sets their number, 100 by default"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_long_outages_lose_no_task_of_one_process() {
    outages(1, Duration::from_secs(15), Duration::from_secs(20), rounds()).await;
}

#[ignore = "takes 45 s a round; TOWER_OFFLOAD_ROUNDS sets their number, 100 by default"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_long_outages_lose_no_task_of_three_processes() {
    outages(3, Duration::from_secs(15), Duration::from_secs(20), rounds()).await;
}

async fn restarts(processes: usize, rounds: usize) {
    let Some(server) = OwnServer::start().await else { return };
    let cluster = Cluster::start(processes, &server.url(), server.url(), LEASE).await;
    for round in 0..rounds {
        let mode = if round % 2 == 0 { "fast" } else { "immediate" };
        println!("round {round}: {mode}");
        cluster.disturbed(server.restart(mode)).await;
    }
    cluster.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_the_server_lose_no_task() {
    restarts(2, 2).await;
}

#[ignore = "takes 6 s a round; TOWER_OFFLOAD_ROUNDS sets their number, 100 by default"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_restarts_of_the_server_lose_no_task() {
    restarts(3, rounds()).await;
}

/// The records of a process that was killed are lost although all others have had an outage too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_ends_in_an_outage_is_lost_after_it() {
    let Some(server) = OnServer::fresh().await else { return };
    let (proxy, url) = Proxy::to(&server.url()).await;
    let lease = Duration::from_secs(1);
    let killed = SqlStore::open_with_lease(&url, lease).await.unwrap();
    let epoch = begin(&killed).await;
    killed.write(epoch, &[accept(&running(1))]).await.unwrap();
    let tasks = Tasks::new(SqlStore::open_with_lease(&url, lease).await.unwrap());
    tasks.start().await.unwrap();
    proxy.refuse();
    sleep(lease * 2).await;
    proxy.resume();
    let lost = async {
        loop {
            match tasks.get(id(1)).await {
                Ok(Found::Record(record)) if record.state.is_final() => return record.state,
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    assert_eq!(timeout(LONG, lost).await.expect("the task is not lost"), TaskState::Lost);
}

#[tokio::test]
async fn process_that_is_not_steady_judges_no_other() {
    let Some(server) = OnServer::fresh().await else { return };
    let (first, second) = (server.open().await, server.open().await);
    let (epoch, judge) = (begin(&first).await, begin(&second).await);
    first.write(epoch, &[accept(&running(1))]).await.unwrap();
    server.lose_process(epoch).await;
    assert_eq!(second.mark_lost(judge, now()).await.unwrap(), 0, "it has just begun");

    server.make_steady(judge).await;
    server.lose_process(judge).await;
    assert_eq!(second.mark_lost(judge, now()).await.unwrap(), 0, "its own lease has expired");
    assert!(second.renew(judge).await.unwrap(), "and it has not ended its own epoch");
    assert_eq!(second.mark_lost(judge, now()).await.unwrap(), 0, "the renewal came after a gap");
    assert_eq!(found(&second, 1).await.unwrap().state, TaskState::Running);

    server.make_steady(judge).await;
    assert!(second.renew(judge).await.unwrap());
    assert_eq!(second.mark_lost(judge, now()).await.unwrap(), 1, "there was no gap");
}

/// The writer waits for a row that another transaction has locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_write_delays_neither_renewals_nor_cancellation() {
    let Some(server) = OnServer::fresh().await else { return };
    // Shorter than the server lets the write wait, and long enough to be renewed on a busy machine.
    let lease = Duration::from_secs(5);
    let store = SqlStore::open_with_lease(&server.url(), lease).await.unwrap();
    let (tasks, background) = (Tasks::new(store.clone()), background());
    let (advance, advanced) = oneshot::channel();
    let locked = tasks.track("locked").spawn(&background, move |progress: Progress| async move {
        let _ = advanced.await;
        progress.set(0.5, "half");
        std::future::pending::<Result<(), Infallible>>().await
    });
    let locked = locked.await.unwrap().id();
    let pending = |_| std::future::pending::<Result<(), Infallible>>();
    let other = tasks.track("other").spawn(&background, pending).await.unwrap().id();
    for id in [locked, other] {
        eventually("the start is written", async || {
            store.get(id).await.unwrap().into_record().unwrap().state == TaskState::Running
        })
        .await;
    }
    let (mut locking, mut connection) = (server.connect().await, server.connect().await);
    let mut locking = locking.begin().await.unwrap();
    let lock = "SELECT 1 FROM tower_offload_task WHERE id = $1 FOR UPDATE";
    sqlx::query(lock).bind(locked.as_bytes().to_vec()).execute(&mut *locking).await.unwrap();
    advance.send(()).unwrap();
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("the write waits for the lock", async || number(&mut connection, waiting).await > 0).await;
    let request = "UPDATE tower_offload_task SET cancel_requested_at = created_at WHERE id = $1";
    sqlx::query(request).bind(other.as_bytes().to_vec()).execute(&mut connection).await.unwrap();
    let cancelled = timeout(LONG, ended(&tasks, other)).await.expect("the request waits for the write");
    assert_eq!(cancelled.state, TaskState::Cancelled);
    renews_in_time(&mut connection).await;
    // A write that the server has cancelled is repeated.
    eventually("the write still waits", async || number(&mut connection, waiting).await > 0).await;
    locking.rollback().await.unwrap();
}

/// Anyone may ask for the status of an unknown task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_reads_delays_no_renewal() {
    let Some(server) = OnServer::fresh().await else { return };
    let tasks = Tasks::new(SqlStore::open_with_lease(&server.url(), LEASE * 2).await.unwrap());
    tasks.start().await.unwrap();
    let mut connection = server.connect().await;
    let (stop, mut readers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for reader in 0..2000 {
        let (tasks, stop) = (tasks.clone(), stop.clone());
        readers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let _ = tasks.get(id(reader)).await; // may be refused
                sleep(Duration::from_millis(1)).await;
            }
        });
    }
    renews_in_time(&mut connection).await;
    stop.store(true, Ordering::Relaxed);
    readers.join_all().await;
    assert_eq!(tasks.stats().lost_leases, 0);
}

/// The first host has been the primary, and drops all packets from now on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_that_drops_packets_costs_no_lease_if_another_answers() {
    let Some(server) = OnServer::fresh().await else { return };
    let (proxy, url) = Proxy::to(&server.url()).await;
    let (of_proxy, of_server) = (address(&url), server.url());
    let hosts = format!("{of_proxy},{}", address(&of_server));
    let url = format!("{}&connect_timeout=60", url.replace(of_proxy, &hosts));
    let tasks = Tasks::new(SqlStore::open_with_lease(&url, LEASE * 2).await.unwrap());
    tasks.start().await.unwrap();
    let mut connection = server.connect().await;
    proxy.hold();
    renews_in_time(&mut connection).await;
    assert_eq!(tasks.stats().lost_leases, 0);
}

/// The other process is connected all the time, so it is steady.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_is_cut_off_alone_is_judged_and_continues() {
    let Some(server) = OnServer::fresh().await else { return };
    let (proxy, url) = Proxy::to(&server.url()).await;
    let cut_off = Tasks::new(SqlStore::open_with_lease(&url, LEASE).await.unwrap());
    let other = Tasks::new(SqlStore::open_with_lease(&server.url(), LEASE).await.unwrap());
    let (first, second) = (hold(&cut_off, &background()).await, hold(&other, &background()).await);
    proxy.hold();
    let lost = timeout(LONG, ended(&other, first.id)).await.expect("the silent process is not judged");
    assert_eq!((lost.state, lost.reason), (TaskState::Lost, Some(Reason::ProcessLost)));
    proxy.resume();

    let lost = timeout(LONG, ended(&cut_off, first.id)).await.expect("the process does not notice");
    assert_eq!((lost.state, lost.reason), (TaskState::Lost, Some(Reason::ProcessLost)));
    first.release();
    let accept = async {
        loop {
            match cut_off.track("x").spawn_blocking(&background(), |_| done()).await {
                Ok(accepted) => return accepted.id(),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let accepted = timeout(LONG, accept).await.expect("no task is accepted");
    assert_eq!(ended(&other, accepted).await.state, TaskState::Succeeded);
    assert_eq!((cut_off.stats().lost_leases, cut_off.stats().fenced), (1, 1));
    let id = second.id;
    second.release();
    assert_eq!(ended(&other, id).await.state, TaskState::Succeeded);
    assert_eq!((other.stats().lost_leases, other.stats().fenced), (0, 0));
}

fn skewed(store: SqlStore, skew: i64) -> Tasks {
    let hours = Duration::from_secs(skew.unsigned_abs() * 3600);
    let clock = move || if skew < 0 { SystemTime::now() - hours } else { SystemTime::now() + hours };
    Tasks::builder(store).clock(clock).retention(Retention::default().max_age(Duration::from_secs(3600))).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skewed_clocks_of_processes_affect_no_lease() {
    let Some(server) = OnServer::fresh().await else { return };
    let (lease, background) = (LEASE * 3 / 2, background());
    let (mut all, mut running) = (Vec::new(), Vec::new());
    for skew in [-2, 0, 2] {
        let tasks = skewed(SqlStore::open_with_lease(&server.url(), lease).await.unwrap(), skew);
        running.push(hold(&tasks, &Background::default()).await);
        let finished = tasks.track("x").spawn_blocking(&background, |_| done()).await.unwrap();
        ended(&tasks, finished.id()).await;
        all.push((tasks, finished.id()));
    }
    sleep(lease * 3 / 2).await;
    for ((tasks, finished), held) in all.iter().zip(running) {
        let id = held.id;
        assert_eq!(record(tasks, id).await.state, TaskState::Running);
        held.release();
        assert_eq!(ended(tasks, id).await.state, TaskState::Succeeded);
        for (other, _) in &all {
            assert_eq!(record(other, *finished).await.state, TaskState::Succeeded, "evicted");
        }
    }
}

/// One record ended two hours ago by the clock of its process, and one will end in two hours.
#[tokio::test]
async fn skewed_clocks_of_processes_affect_no_retention() {
    let Some(server) = OnServer::fresh().await else { return };
    let (store, hour) = (server.open().await, Duration::from_secs(3600));
    let epoch = begin(&store).await;
    let records = [succeeded(1, now().before(2 * hour)), succeeded(2, now().after(2 * hour))];
    for record in &records {
        assert_eq!(store.write(epoch, &[accept(record)]).await.unwrap(), [Written::Done]);
    }
    let retention = Retention::default().max_age(hour);
    for sweeper in [now(), now().after(2 * hour), now().before(2 * hour)] {
        assert_eq!(store.sweep(sweeper, &retention).await.unwrap().evicted, 0);
    }
    server.age(&store, epoch, vec![succeeded(3, now().after(2 * hour))], 2 * hour).await;
    let evicted = store.sweep(now().before(2 * hour), &retention.max_records(1).tombstone_ttl(hour)).await.unwrap();
    assert_eq!(evicted.evicted, 2, "the oldest record, and the first of the others");
    assert!(found(&store, 2).await.is_some());
    assert_eq!(store.sweep(now().after(2 * hour), &retention).await.unwrap().forgotten, 0, "tombstones are not old");
}
