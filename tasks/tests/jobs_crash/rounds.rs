//! Processes that are killed at random times under load. Every accepted job runs at least once, and
//! no job stays `running`.

use std::{collections::HashSet, env, time::Duration};

use tokio::time::{Instant, sleep};

use tower_offload_tests::Random;

use super::{
    cluster::{Cluster, LEASE},
    load::Load,
};

const FEW: usize = 5;
const MANY: usize = 50;
/// Attempts exceed the number of rounds, so that no job uses all of them.
const ARGUMENTS: [&str; 2] = ["--attempts", "10000"];

/// Generates a short and a long test from a function.
macro_rules! rounds {
    ($name:ident, $cluster:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "not every test uses them")]
            use super::{ARGUMENTS, Cluster, FEW, MANY};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn few() {
                let Some(cluster) = $cluster else { return };
                super::$name(cluster, FEW).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "takes minutes"]
            async fn many() {
                let Some(cluster) = $cluster else { return };
                super::$name(cluster, MANY).await;
            }
        }
    };
}

rounds!(restart_on_sqlite, Cluster::on_sqlite(&ARGUMENTS));
rounds!(restart_on_postgres, Cluster::on_postgres(&ARGUMENTS).await);
rounds!(takeover_on_postgres, Cluster::on_postgres(&ARGUMENTS).await);

/// A restart recovers within a second.
async fn restart_on_sqlite(cluster: Cluster, rounds: usize) {
    restart(cluster, rounds, Duration::from_secs(1)).await;
}

/// A restart recovers within a second after the lease.
async fn restart_on_postgres(cluster: Cluster, rounds: usize) {
    restart(cluster, rounds, LEASE + Duration::from_secs(1)).await;
}

/// Maximum time from a start to a kill that interrupts the recovery.
const MAX_START_MILLIS: usize = 400;
const MAX_RUN_MILLIS: usize = 1500;

async fn restart(cluster: Cluster, rounds: usize, limit: Duration) {
    let mut run = LoadRun::start(&cluster, limit);
    let (mut program, mut url) = cluster.start().await;
    for _ in 0..self::rounds(rounds) {
        run.load.set_servers(&[&url]);
        run.wait(MAX_RUN_MILLIS).await;
        program.kill().await;
        run.load.set_servers(&[]);
        if run.random.one_in(3) {
            let early = cluster.spawn();
            run.wait(MAX_START_MILLIS).await;
            early.kill().await;
        }
        let interrupted = cluster.left_running().await;
        let started = Instant::now();
        (program, url) = cluster.start().await;
        cluster.until_recovered(&interrupted).await;
        run.recovered(interrupted.len(), started);
    }
    run.load.set_servers(&[&url]);
    run.end(&cluster, &url).await;
    program.terminate().await;
    assert!(cluster.left_running().await.is_empty());
}

/// The other process recovers the jobs within a second after the lease.
async fn takeover_on_postgres(cluster: Cluster, rounds: usize) {
    let mut run = LoadRun::start(&cluster, LEASE + Duration::from_secs(1));
    let (mut victim, mut survivor) = (cluster.start().await, cluster.start().await);
    for _ in 0..self::rounds(rounds) {
        run.load.set_servers(&[&victim.1, &survivor.1]);
        run.wait(MAX_RUN_MILLIS).await;
        if run.random.one_in(2) {
            std::mem::swap(&mut victim, &mut survivor);
        }
        let process_id = victim.0.process_id;
        victim.0.kill().await;
        let killed = Instant::now();
        run.load.set_servers(&[&survivor.1]);
        let interrupted = cluster.running_in(process_id).await;
        cluster.until_recovered(&interrupted).await;
        run.recovered(interrupted.len(), killed);
        victim = cluster.start().await;
    }
    run.load.set_servers(&[&victim.1, &survivor.1]);
    run.end(&cluster, &survivor.1).await;
    victim.0.terminate().await;
    survivor.0.terminate().await;
    assert!(cluster.left_running().await.is_empty());
}

fn rounds(default: usize) -> usize {
    number("CRASH_ROUNDS").unwrap_or(default)
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(variable: &str) -> Option<T> {
    Some(env::var(variable).ok()?.parse().expect("not a number"))
}

/// Load and measurements while processes are killed.
struct LoadRun {
    random: Random,
    load: Load,
    limit: Duration,
    recoveries: Vec<Duration>,
    interrupted: usize,
}

impl LoadRun {
    fn start(cluster: &Cluster, limit: Duration) -> Self {
        let seed = number("CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32);
        println!("CRASH_SEED={seed}");
        let mut random = Random::new(seed);
        let load = Load::start(&cluster.http, &mut random);
        Self { random, load, limit, recoveries: Vec::new(), interrupted: 0 }
    }

    async fn wait(&mut self, max_millis: usize) {
        sleep(Duration::from_millis(self.random.below(max_millis) as u64)).await;
    }

    fn recovered(&mut self, interrupted: usize, since: Instant) {
        self.interrupted += interrupted;
        self.recoveries.push(since.elapsed());
    }

    async fn end(self, cluster: &Cluster, url: &str) {
        let requests = self.load.end().await;
        cluster.until_finished().await;
        let written = cluster.written();
        for (key, id) in &requests.accepted {
            assert!(written.contains_key(key), "{key} was accepted and did not run");
            assert_eq!(cluster.http.status(url, id).await["state"], "succeeded", "{key}");
        }
        let keys: HashSet<_> = requests.accepted.iter().map(|(key, _)| key).collect();
        assert!(written.keys().all(|key| keys.contains(key)), "a job ran that was not enqueued");
        assert_eq!(keys.len(), requests.accepted.len());
        assert_eq!(
            cluster.database.number("SELECT count(*) FROM river_job").await,
            keys.len() as i64,
            "each key is one job"
        );
        assert_eq!(cluster.database.number("SELECT count(*) FROM river_job WHERE state <> 'completed'").await, 0);

        let again = written.values().filter(|&&times| times > 1).count();
        let attempts = cluster.database.number("SELECT CAST(max(attempt) AS bigint) FROM river_job").await;
        let slowest = self.recoveries.iter().max().copied().unwrap_or_default();
        println!(
            "{} kills: {} jobs accepted and run, {} ran more than once, {} responses lost, {} requests rejected; {} attempts \
            interrupted, at most {attempts} attempts of one job; recovered within {slowest:?}, limit {:?}",
            self.recoveries.len(),
            keys.len(),
            again,
            requests.responses_lost,
            requests.rejected,
            self.interrupted,
            self.limit,
        );
    }
}
