//! Processes that are killed, over HTTP: P13. The children are this program again, with the one test at the end.

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
    AcceptError, Accepted, Progress, Register, Retention, SqlStore, TaskId, TaskStore, Tasks, service::Access,
};

use super::{
    databases::OnServer,
    http::{Client, part, rest},
    sqlite_store::Folder,
    store_suite::{Backend, now},
};

/// Long enough for renewals on a busy machine, and short enough to wait for its end.
const LEASE: Duration = Duration::from_secs(3);

/// A process that serves tasks in one store; killed when dropped.
struct Child {
    process: process::Child,
    client: Client,
}

impl Child {
    async fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crashes::child", "--nocapture"])
            .env("TOWER_OFFLOAD_CHILD_STORE", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let find = || lines.map_while(Result::ok).find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
        let address = tokio::task::spawn_blocking(find).await.unwrap().expect("it has begun");
        Self { process, client: Client::of(address.parse().unwrap()) }
    }

    /// SIGKILL.
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

    /// The id of a task that takes so long.
    async fn accept(&self, millis: u32) -> String {
        let reply = self.client.send("POST", &format!("/now/{millis}"), &[]).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    async fn until(&self, id: &str, state: &str) {
        while self.state(id).await != state {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

const FOR_EVER: u32 = 3_600_001;

/// P13, F8. A process that lives is asked all the time what it knows of the tasks of another, and leases are looked at more often than any
/// process does; times are those of the server.
#[tokio::test]
async fn what_a_process_accepts_another_tells_and_it_is_lost_after_the_lease_of_a_killed_one_and_never_before() {
    let Some(server) = OnServer::fresh().await else { return };
    let (doomed, witness) = (Child::start(&server.url()).await, Child::start(&server.url()).await);
    let (mut database, sweeper) = (server.connect().await, server.open().await);
    let name = format!("child {}", doomed.process.id());
    let id = doomed.accept(FOR_EVER).await;
    witness.state(&id).await; // at once
    witness.until(&id, "running").await;

    let lease = "SELECT expires_at::text FROM tower_offload_process WHERE name = $1";
    let lease = async |database: &mut _| {
        sqlx::query_scalar::<_, String>(lease).bind(&name).fetch_optional(database).await.unwrap()
    };
    let is_past = async |database: &mut _, time: &str| {
        let is_past = sqlx::query_scalar::<_, bool>("SELECT clock_timestamp() >= $1::timestamptz").bind(time);
        is_past.fetch_one(database).await.unwrap()
    };
    let sweep = async || sweeper.sweep(now(), &Retention::default()).await.unwrap();
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
            sweep().await; // afterwards the witness has to do that by itself
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
    assert!(after.fetch_one(&mut database).await.unwrap(), "nor does it say so");
}

#[tokio::test]
async fn a_task_is_followed_and_cancelled_through_another_process() {
    let Some(server) = OnServer::fresh().await else { return };
    let (owner, other) = (Child::start(&server.url()).await, Child::start(&server.url()).await);
    let id = owner.accept(FOR_EVER).await;
    other.until(&id, "running").await;
    let mut events = other.client.open("GET", &format!("/tasks/{id}/events"), &[]).await.unwrap().into_body();
    let mut story = part(&mut events).await.unwrap();
    assert_eq!(other.client.send("DELETE", &format!("/tasks/{id}"), &[]).await.status, 202);
    story += &rest(&mut events).await;
    assert!(story.contains("event: finished") && story.contains("\"state\":\"cancelled\""), "{story}");
    assert_eq!(owner.state(&id).await, "cancelled");
}

/// Numbers that are the same again for the same seed, which is told.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let fresh = || {
            let mut random = [0; 8];
            getrandom::fill(&mut random).unwrap();
            u64::from_ne_bytes(random)
        };
        let seed = std::env::var("TOWER_OFFLOAD_SEED").map_or_else(|_| fresh(), |seed| seed.parse().unwrap());
        println!("the same once more: TOWER_OFFLOAD_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Asks for tasks on some connections until the process is killed, after that time. Which ones it has accepted.
async fn killed_under_load(child: Child, random: &mut Random) -> Vec<String> {
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (client, accepted, mut random) =
            (child.client.clone(), accepted.clone(), Random(random.below(u64::MAX) | 1));
        clients.spawn(async move {
            loop {
                let kind = ["now", "after"][random.below(2) as usize];
                let target = format!("/{kind}/{}", random.below(60));
                let Ok(response) = client.open("POST", &target, &[]).await else { return };
                assert!(response.status() == 202 || response.status() == 503);
                if let Some(place) = response.headers().get("location") {
                    let id = place.to_str().unwrap().strip_prefix("/tasks/").unwrap().to_owned();
                    accepted.lock().unwrap().push(id);
                }
            }
        });
    }
    while accepted.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(random.below(300))).await;
    child.kill();
    clients.join_all().await;
    std::mem::take(&mut *accepted.lock().unwrap())
}

/// Every one is there, and over if its process is known to be gone.
async fn found(child: &Child, ids: impl IntoIterator<Item = &String>, are_over: bool) {
    let states = stream::iter(ids).map(|id| child.state(id)).buffer_unordered(16);
    states
        .for_each(async |state| {
            let is_over = ["succeeded", "lost"].contains(&state.as_str());
            assert!(is_over || !are_over && ["queued", "running"].contains(&state.as_str()), "{state}");
        })
        .await;
}

async fn rounds(url: &str, count: usize, server: Option<&OnServer>) {
    let mut random = Random::seeded();
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut are_over = true;
    for round in 0..count {
        let child = Child::start(url).await;
        found(&child, all.iter().rev().take(2).flatten(), are_over).await;
        let accepted = killed_under_load(child, &mut random).await;
        println!("round {round}: {} accepted", accepted.len());
        all.push(accepted);
        are_over = match server {
            Some(server) if round + 1 == count || random.below(2) == 0 => {
                leases_are_over(server).await;
                true
            }
            // The next one starts before anybody can know that this one is gone.
            Some(_) => false,
            None => true,
        };
    }
    let last = Child::start(url).await;
    found(&last, all.iter().flatten(), true).await;
    let pending = last.client.get("/tasks?state=queued,running").await;
    assert_eq!(pending.json()["tasks"], serde_json::json!([]), "nor those of which nobody was told");
    let ids: HashSet<_> = all.iter().flatten().collect();
    assert_eq!(ids.len(), all.iter().map(Vec::len).sum::<usize>(), "no id twice");
}

async fn leases_are_over(server: &OnServer) {
    let mut database = server.connect().await;
    let query = "SELECT count(*) FROM tower_offload_process WHERE expires_at > clock_timestamp()";
    while sqlx::query_scalar::<_, i64>(query).fetch_one(&mut database).await.unwrap() > 0 {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn rounds_on_sqlite(count: usize) {
    let folder = Folder::new();
    rounds(&format!("sqlite:{}", folder.file().display()), count, None).await;
}

async fn rounds_on_postgres(count: usize) {
    let Some(server) = OnServer::fresh().await else { return };
    rounds(&server.url(), count, Some(&server)).await;
}

/// P13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_accepted_before_a_kill_is_there_and_does_not_stick_on_sqlite() {
    rounds_on_sqlite(5).await;
}

/// P13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_accepted_before_a_kill_is_there_and_does_not_stick_on_postgres() {
    rounds_on_postgres(5).await;
}

#[ignore = "a minute or two: for changes to the store"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_on_sqlite() {
    rounds_on_sqlite(50).await;
}

#[ignore = "a few minutes: for changes to the store"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_on_postgres() {
    rounds_on_postgres(50).await;
}

/// With an odd number async, with an even one sync.
async fn accept(tasks: &Tasks, register: &impl Register, millis: u32) -> Result<Accepted, AcceptError> {
    let half = Duration::from_millis(u64::from(millis) / 2);
    let track = tasks.track("work");
    if millis % 2 == 0 {
        let work = move |progress: Progress| {
            progress.set(0.5, "half");
            thread::sleep(half / 10);
            Ok::<_, Infallible>(millis)
        };
        return track.run(register, work).await;
    }
    let work = move |progress: Progress| async move {
        sleep(half).await;
        progress.set(0.5, "half");
        sleep(half).await;
        Ok::<_, Infallible>(millis)
    };
    track.spawn(register, work).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(url) = std::env::var("TOWER_OFFLOAD_CHILD_STORE") else { return };
    thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new()); // until the test is gone, however that came
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
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}
