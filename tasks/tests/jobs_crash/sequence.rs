//! Sequences of jobs while their processes are killed: the jobs of a key run one at a time in the
//! order in which they were accepted, and none is stuck.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::{Method, StatusCode};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower_offload_tests::Random;

use super::{cluster::Cluster, http::Http};

struct Plan {
    keys: usize,
    jobs_of_each: usize,
    kills: usize,
    processes: usize,
}

const SHORT: Plan = Plan { keys: 6, jobs_of_each: 8, kills: 2, processes: 2 };
const LONG: Plan = Plan { keys: 100, jobs_of_each: 100, kills: 50, processes: 2 };
const ARGUMENTS: [&str; 2] = ["--attempts", "10000"];
/// Maximum time between a start and the next kill.
const MAX_RUN_MILLIS: usize = 600;
const RETRY_DELAY: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_survives_kills_on_sqlite() {
    let Some(cluster) = Cluster::on_sqlite(&ARGUMENTS) else { return };
    kill_and_check(cluster, Plan { processes: 1, ..SHORT }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_survives_kills_on_postgres() {
    let Some(cluster) = Cluster::on_postgres(&ARGUMENTS).await else { return };
    kill_and_check(cluster, SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn order_survives_fifty_kills_on_sqlite() {
    let Some(cluster) = Cluster::on_sqlite(&ARGUMENTS) else { return };
    kill_and_check(cluster, Plan { processes: 1, ..LONG }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn order_survives_fifty_kills_on_postgres() {
    let Some(cluster) = Cluster::on_postgres(&ARGUMENTS).await else { return };
    kill_and_check(cluster, LONG).await;
}

/// Enqueues the jobs of one key one after the other. A request without a response is repeated, and
/// the same job is accepted once.
async fn enqueue_all(http: Http, servers: Arc<Mutex<Vec<String>>>, sequence: usize, jobs: usize) {
    for number in 0..jobs {
        loop {
            let url = {
                let servers = servers.lock().unwrap();
                servers.get(sequence % servers.len().max(1)).cloned()
            };
            if let Some(url) = url {
                let job = format!("{url}/jobs?ms=10&key={number}&sequence=s{sequence}");
                if matches!(http.send(Method::POST, &job).await, Ok((StatusCode::ACCEPTED, _))) {
                    break;
                }
            }
            sleep(RETRY_DELAY).await;
        }
    }
}

async fn kill_and_check(cluster: Cluster, plan: Plan) {
    let seed = u64::from(std::process::id()) << 32;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let started = Instant::now();
    let mut programs = Vec::new();
    for _ in 0..plan.processes {
        programs.push(cluster.start().await);
    }
    let urls = |programs: &[(_, String)]| programs.iter().map(|(_, url)| url.clone()).collect::<Vec<_>>();
    let servers = Arc::new(Mutex::new(urls(&programs)));
    let mut clients = JoinSet::new();
    for sequence in 0..plan.keys {
        clients.spawn(enqueue_all(cluster.http.clone(), servers.clone(), sequence, plan.jobs_of_each));
    }
    for _ in 0..plan.kills {
        sleep(Duration::from_millis(random.below(MAX_RUN_MILLIS) as u64)).await;
        let (victim, _) = programs.remove(random.below(programs.len()));
        *servers.lock().unwrap() = urls(&programs);
        victim.kill().await;
        programs.push(cluster.start().await);
        *servers.lock().unwrap() = urls(&programs);
    }
    clients.join_all().await;
    cluster.until_finished().await;
    check(&cluster, &plan).await;
    println!("{} jobs, {} kills, {:?}", plan.keys * plan.jobs_of_each, plan.kills, started.elapsed());
    for (program, _) in programs {
        program.terminate().await;
    }
}

async fn check(cluster: &Cluster, plan: &Plan) {
    let mut sequences: HashMap<String, Vec<usize>> = HashMap::new();
    for line in cluster.lines() {
        let (sequence, number) = line.split_once(' ').expect("a sequence and a key");
        sequences.entry(sequence.to_owned()).or_default().push(number.parse().unwrap());
    }
    assert_eq!(sequences.len(), plan.keys);
    let mut repeated = 0;
    for (sequence, mut numbers) in sequences {
        assert!(numbers.is_sorted(), "{sequence}: {numbers:?}");
        let lines = numbers.len();
        numbers.dedup();
        repeated += lines - numbers.len();
        assert!(numbers.into_iter().eq(0..plan.jobs_of_each), "{sequence} lacks jobs");
    }
    println!("{repeated} jobs ran again after a crash");
    for nothing in
        ["SELECT count(*) FROM river_job WHERE state <> 'completed'", "SELECT count(*) FROM tower_offload_sequence"]
    {
        assert_eq!(cluster.database.number(nothing).await, 0, "{nothing}");
    }
}
