//! Restarts of the Postgres server under load.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep};
use tower_offload_tasks::{
    SqlStore, TaskState, Tasks,
    jobs::{Backoff, Jobs},
};
use tower_offload_tests::{PATIENCE, Random};

use super::{
    databases::server::OwnServer,
    support::{Act, ActAsync, LONG, SHORT, record},
};

const LEASE: Duration = Duration::from_secs(3);
/// Time that a job works.
const WORK_TIME: Duration = Duration::from_millis(25);
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_the_server_leave_no_job_running() {
    restart(4).await;
}

/// Takes minutes. Prints the longest time after a restart in which a job was shown as running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; TOWER_OFFLOAD_ROUNDS sets the number of rounds, 100 by default"]
async fn many_restarts_of_the_server_leave_no_job_running() {
    restart(std::env::var("TOWER_OFFLOAD_ROUNDS").map_or(100, |rounds| rounds.parse().unwrap())).await;
}

async fn restart(rounds: usize) {
    let Some(server) = OwnServer::start().await else { return };
    let tasks = Tasks::new(SqlStore::open_with_lease(&server.url(), LEASE).await.unwrap());
    let work = |_: ActAsync, _| async {
        sleep(WORK_TIME).await;
        Ok::<_, String>(())
    };
    let builder = Jobs::builder(&tasks).backoff(Backoff::fixed(Duration::ZERO));
    let jobs = builder.worker(LONG, work).start().await.unwrap();
    let mut random = Random::new(u64::from(std::process::id()));
    let (mut slowest, mut accepted) = (Duration::ZERO, Vec::new());
    for round in 0..rounds {
        let mut load = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let jobs = jobs.clone();
            load.spawn(async move {
                let (mut ids, until) = (Vec::new(), Instant::now() + Duration::from_millis(900));
                while Instant::now() < until {
                    let enqueued = jobs.enqueue(ActAsync(Act::Fail)).await;
                    ids.extend(enqueued.ok().map(|accepted| accepted.id()));
                    sleep(Duration::from_millis(2)).await;
                }
                ids
            });
        }
        sleep(Duration::from_millis(100 + random.below(700) as u64)).await;
        server.restart(if round % 2 == 0 { "fast" } else { "immediate" }).await;
        let restarted = Instant::now();
        accepted.extend(load.join_all().await.into_iter().flatten());
        // A job whose claim or end was lost stays running longer than its work.
        const STUCK: &str = "SELECT count(*) FROM river_job WHERE state = 'running'";
        let mut connection = PgConnection::connect(&server.url()).await.unwrap();
        while sqlx::query_scalar::<_, i64>(STUCK).fetch_one(&mut connection).await.unwrap() > 0 {
            assert!(restarted.elapsed() < PATIENCE, "a job is running forever");
            sleep(SHORT).await;
        }
        connection.close().await.unwrap();
        slowest = slowest.max(restarted.elapsed());
    }
    let finish = async {
        for id in &accepted {
            while record(&tasks, *id).await.state != TaskState::Succeeded {
                sleep(SHORT).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, finish).await.expect("an accepted job has not run");
    let limit = LEASE + Duration::from_secs(1);
    println!("{rounds} restarts, {} jobs: none running {slowest:?} after the restart, limit {limit:?}", accepted.len());
    assert!(jobs.shutdown(LONG).await.is_clean());
}
