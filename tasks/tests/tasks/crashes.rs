//! Processes that serve tasks over HTTP and are killed. The children are this binary again, with
//! the test `child` at the end.

use std::{
    collections::HashSet,
    convert::Infallible,
    io::{BufRead, BufReader},
    process::{self, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    routing::post,
};
use futures_util::{StreamExt, stream};
use tokio::{task::JoinSet, time::sleep};
use tower_offload::{AfterResponse, AfterResponseLayer, Background};
use tower_offload_tasks::{
    AcceptError, Accepted, Progress, Retention, SqlStore, TaskId, TaskStore, TaskTarget, Tasks, service::Access,
};
use tower_offload_tests::{Random, ReservedPort, eventually};

use super::{
    databases::OnServer,
    http::{Client, part, rest},
    sqlite_store::Folder,
    store_suite::{Backend, begin, now},
};

/// Duration of leases: long enough to be renewed on a busy machine, and short enough that a test
/// can wait for the expiry.
const LEASE: Duration = Duration::from_secs(3);

/// A process that serves the tasks of one store. Killed when dropped.
struct Child {
    process: process::Child,
    client: Client,
    /// Clients that still use it after the kill are refused.
    port: Arc<ReservedPort>,
}

impl Child {
    async fn start(url: &str) -> Self {
        let port = Arc::new(ReservedPort::new());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crashes::child", "--nocapture"])
            .env("TOWER_OFFLOAD_CHILD_STORE", url)
            .env("TOWER_OFFLOAD_CHILD_ADDRESS", port.address())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let find = || lines.map_while(Result::ok).find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
        let address = tokio::task::spawn_blocking(find).await.unwrap().expect("the child does not listen");
        Self { process, client: Client::of(address.parse().unwrap()), port }
    }

    /// Sends SIGKILL.
    fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    async fn state(&self, id: &str) -> String {
        let reply = self.client.get(&format!("/tasks/{id}")).await;
        assert_eq!(reply.status, 200, "{id} was accepted: {}", reply.text);
        reply.json()["state"].as_str().unwrap().to_owned()
    }

    /// Submits a task that runs for this long and returns its id.
    async fn accept(&self, millis: u32) -> String {
        let reply = self.client.send("POST", &format!("/now/{millis}"), &[]).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    async fn until(&self, id: &str, state: &str) {
        eventually(&format!("task {id} is {state}"), async || self.state(id).await == state).await;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

const ENDLESS: u32 = 3_600_001;

/// Queries the state of a task through another process, and judges others more often than any
/// process does. All times are by the clock of the server.
#[tokio::test]
async fn task_of_a_killed_process_is_lost_after_its_lease_expires() {
    let Some(server) = OnServer::fresh().await else { return };
    let (doomed, witness) = (Child::start(&server.url()).await, Child::start(&server.url()).await);
    let (mut database, sweeper) = (server.connect().await, server.open().await);
    let name = format!("child {}", doomed.process.id());
    let id = doomed.accept(ENDLESS).await;
    witness.state(&id).await; // known at once
    witness.until(&id, "running").await;

    let lease = "SELECT expires_at::text FROM tower_offload_process WHERE name = $1";
    let lease = async |database: &mut _| {
        sqlx::query_scalar::<_, String>(lease).bind(&name).fetch_optional(database).await.unwrap()
    };
    let is_past = async |database: &mut _, time: &str| {
        let is_past = sqlx::query_scalar::<_, bool>("SELECT clock_timestamp() >= $1::timestamptz").bind(time);
        is_past.fetch_one(database).await.unwrap()
    };
    let judge = begin(&sweeper).await;
    server.make_steady(judge).await;
    let sweep = async || {
        assert!(sweeper.renew(judge).await.unwrap());
        sweeper.mark_lost(judge, now()).await.unwrap()
    };
    let first = lease(&mut database).await.unwrap();
    while !is_past(&mut database, &first).await {
        sweep().await;
        assert_eq!(witness.state(&id).await, "running");
    }
    sweep().await;
    assert_eq!(witness.state(&id).await, "running", "renewed");

    doomed.kill();
    let mut last = String::new();
    loop {
        last = lease(&mut database).await.unwrap_or(last);
        if !is_past(&mut database, &last).await {
            sweep().await; // after the expiry only the witness sweeps
        }
        match witness.state(&id).await.as_str() {
            "running" => {}
            "lost" => break,
            other => panic!("{other}"),
        }
    }
    assert!(is_past(&mut database, &last).await, "lost before {last}");
    let after =
        "SELECT finished_at >= floor(extract(epoch FROM $1::timestamptz) * 1000) FROM tower_offload_task WHERE id = $2";
    let id: TaskId = id.parse().unwrap();
    let after = sqlx::query_scalar::<_, bool>(after).bind(&last).bind(&id.as_bytes()[..]);
    assert!(after.fetch_one(&mut database).await.unwrap(), "the record has an earlier end");
}

#[tokio::test]
async fn task_is_followed_and_cancelled_through_another_process() {
    let Some(server) = OnServer::fresh().await else { return };
    let (owner, other) = (Child::start(&server.url()).await, Child::start(&server.url()).await);
    let id = owner.accept(ENDLESS).await;
    other.until(&id, "running").await;
    let mut events = other.client.open("GET", &format!("/tasks/{id}/events"), &[]).await.unwrap().into_body();
    let mut story = part(&mut events).await.unwrap();
    assert_eq!(other.client.send("DELETE", &format!("/tasks/{id}"), &[]).await.status, 202);
    story += &rest(&mut events).await;
    assert!(story.contains("event: finished") && story.contains("\"state\":\"cancelled\""), "{story}");
    assert_eq!(owner.state(&id).await, "cancelled");
}

/// Submits tasks on several connections until the process is killed after a random time. Returns
/// the ids of the accepted tasks.
async fn killed_under_load(child: Child, random: &mut Random) -> Vec<String> {
    let _port = child.port.clone();
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (client, accepted, mut random) = (child.client.clone(), accepted.clone(), random.split());
        clients.spawn(async move {
            loop {
                let kind = random.pick(&["now", "after"]);
                let target = format!("/{kind}/{}", random.below(60));
                let Ok(response) = client.open("POST", &target, &[]).await else { return };
                assert!(response.status() == 202 || response.status() == 503);
                if let Some(location) = response.headers().get("location") {
                    let id = location.to_str().unwrap().strip_prefix("/tasks/").unwrap().to_owned();
                    accepted.lock().unwrap().push(id);
                }
            }
        });
    }
    eventually("a task is accepted", async || !accepted.lock().unwrap().is_empty()).await;
    sleep(Duration::from_millis(random.below(300) as u64)).await; // the moment of the kill is random
    child.kill();
    clients.join_all().await;
    std::mem::take(&mut *accepted.lock().unwrap())
}

/// Checks that all tasks are known, and that they are finished if `are_finished`.
async fn assert_found(child: &Child, ids: impl IntoIterator<Item = &String>, are_finished: bool) {
    let states = stream::iter(ids).map(|id| child.state(id)).buffer_unordered(16);
    states
        .for_each(async |state| {
            let is_finished = ["succeeded", "lost"].contains(&state.as_str());
            assert!(is_finished || !are_finished && ["queued", "running"].contains(&state.as_str()), "{state}");
        })
        .await;
}

async fn rounds(url: &str, count: usize, server: Option<&OnServer>) {
    let seed = std::env::var("TOWER_OFFLOAD_SEED").map_or_else(|_| fresh_seed(), |seed| seed.parse().unwrap());
    println!("to repeat these rounds: TOWER_OFFLOAD_SEED={seed}");
    let mut random = Random::new(seed);
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut are_finished = true;
    for round in 0..count {
        let child = Child::start(url).await;
        if let Some(server) = server.filter(|_| are_finished) {
            until_finished(server).await;
        }
        assert_found(&child, all.iter().rev().take(2).flatten(), are_finished).await;
        let accepted = killed_under_load(child, &mut random).await;
        println!("round {round}: {} accepted", accepted.len());
        all.push(accepted);
        are_finished = match server {
            Some(server) if round + 1 == count || random.one_in(2) => {
                leases_expire(server).await;
                true
            }
            // The next process starts before the lease of this one expires.
            Some(_) => false,
            None => true,
        };
    }
    let last = Child::start(url).await;
    if let Some(server) = server {
        until_finished(server).await;
    }
    assert_found(&last, all.iter().flatten(), true).await;
    let pending = last.client.get("/tasks?state=queued,running").await;
    assert_eq!(pending.json()["tasks"], serde_json::json!([]), "all tasks without a reply are finished too");
    let ids: HashSet<_> = all.iter().flatten().collect();
    assert_eq!(ids.len(), all.iter().map(Vec::len).sum::<usize>(), "no id twice");
}

fn fresh_seed() -> u64 {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    u64::from_ne_bytes(random)
}

/// Returns once all leases have expired.
async fn leases_expire(server: &OnServer) {
    let mut database = server.connect().await;
    let query = "SELECT count(*) FROM tower_offload_process WHERE expires_at > clock_timestamp()";
    eventually("the leases expire", async || {
        sqlx::query_scalar::<_, i64>(query).fetch_one(&mut database).await.unwrap() == 0
    })
    .await;
}

/// Waits until the only process is steady and has marked the records of the earlier ones as lost.
async fn until_finished(server: &OnServer) {
    let mut database = server.connect().await;
    let query = "SELECT count(*) FROM tower_offload_task WHERE state < 10";
    eventually("records of crashed processes are lost", async || {
        sqlx::query_scalar::<_, i64>(query).fetch_one(&mut database).await.unwrap() == 0
    })
    .await;
}

async fn rounds_on_sqlite(count: usize) {
    let folder = Folder::new();
    rounds(&format!("sqlite:{}", folder.file().display()), count, None).await;
}

async fn rounds_on_postgres(count: usize) {
    let Some(server) = OnServer::fresh().await else { return };
    rounds(&server.url(), count, Some(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_tasks_survive_kills_on_sqlite() {
    rounds_on_sqlite(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_tasks_survive_kills_on_postgres() {
    rounds_on_postgres(5).await;
}

#[ignore = "takes two minutes: run it after changes to the store"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_on_sqlite() {
    rounds_on_sqlite(50).await;
}

#[ignore = "takes minutes: run it after changes to the store"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_on_postgres() {
    rounds_on_postgres(50).await;
}

/// Submits a future for an odd number, a closure for an even one.
async fn accept(tasks: &Tasks, target: &impl TaskTarget, millis: u32) -> Result<Accepted, AcceptError> {
    let half = Duration::from_millis(u64::from(millis) / 2);
    let track = tasks.track("work");
    if millis % 2 == 0 {
        let work = move |progress: Progress| {
            progress.set(0.5, "half");
            thread::sleep(half / 10);
            Ok::<_, Infallible>(millis)
        };
        return track.spawn_blocking(target, work).await;
    }
    let work = move |progress: Progress| async move {
        sleep(half).await;
        progress.set(0.5, "half");
        sleep(half).await;
        Ok::<_, Infallible>(millis)
    };
    track.spawn(target, work).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(url) = std::env::var("TOWER_OFFLOAD_CHILD_STORE") else { return };
    thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new()); // returns when the test ends in any way
        process::exit(1);
    });
    let store = SqlStore::open_with_lease(&url, LEASE).await.unwrap();
    let tasks = Tasks::builder(store)
        .retention(Retention::default().max_records(1_000_000))
        .process(format!("child {}", process::id()))
        .build();
    tasks.start().await.unwrap();
    let background = Background::default();
    let now = |State((tasks, background)): State<(Tasks, Background)>, Path(millis): Path<u32>| async move {
        accept(&tasks, &background, millis).await
    };
    let after = |State((tasks, _)): State<(Tasks, Background)>, Path(millis): Path<u32>, after: AfterResponse| async move {
        accept(&tasks, &after, millis).await
    };
    let app = Router::new()
        .route("/now/{millis}", post(now))
        .route("/after/{millis}", post(after))
        .nest_service("/tasks", tasks.service().authorize(|_, _| Access::All))
        .layer(AfterResponseLayer::new(background.clone()))
        .with_state((tasks, background));
    let address = std::env::var("TOWER_OFFLOAD_CHILD_ADDRESS").unwrap();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}
