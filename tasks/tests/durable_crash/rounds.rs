//! P13, and more: processes that are killed at random moments under load. An accepted job is done at least once, and nothing stays `running`.

use std::{collections::HashSet, env, time::Duration};

use tokio::time::{Instant, sleep};

use tower_offload_tests::Random;

use super::{
    load::Load,
    scene::{LEASE, Scene},
};

const FEW: usize = 5;
const MANY: usize = 50;
/// More than there are rounds: no job may end because its processes were killed too often.
const ARGUMENTS: [&str; 2] = ["--attempts", "10000"];

/// Makes a short and a long test of a function.
macro_rules! rounds {
    ($name:ident, $scene:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "not every scene names them")]
            use super::{ARGUMENTS, FEW, MANY, Scene};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn few() {
                let Some(scene) = $scene else { return };
                super::$name(scene, FEW).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "takes minutes"]
            async fn many() {
                let Some(scene) = $scene else { return };
                super::$name(scene, MANY).await;
            }
        }
    };
}

rounds!(on_sqlite_a_process_dies_and_begins_again, Scene::on_sqlite(&ARGUMENTS));
rounds!(on_postgres_a_process_dies_and_begins_again, Scene::on_postgres(&ARGUMENTS).await);
rounds!(on_postgres_one_of_two_dies_and_the_other_takes_over, Scene::on_postgres(&ARGUMENTS).await);

/// What must be: restart recovers within 1 s.
async fn on_sqlite_a_process_dies_and_begins_again(scene: Scene, rounds: usize) {
    begins_again(scene, rounds, Duration::from_secs(1)).await;
}

/// What must be: restart recovers within lease + 1 s.
async fn on_postgres_a_process_dies_and_begins_again(scene: Scene, rounds: usize) {
    begins_again(scene, rounds, LEASE + Duration::from_secs(1)).await;
}

/// Also while it begins, which is when it takes back what the one before has left.
const MOST_OF_A_BEGINNING: usize = 400;
const MOST_OF_A_LIFE: usize = 1500;

async fn begins_again(scene: Scene, rounds: usize, limit: Duration) {
    let mut siege = Siege::begin(&scene, limit);
    let (mut program, mut url) = scene.start().await;
    for _ in 0..self::rounds(rounds) {
        siege.load.goes_to(&[&url]);
        siege.wait(MOST_OF_A_LIFE).await;
        program.kill().await;
        siege.load.goes_to(&[]);
        if siege.random.one_in(3) {
            let early = scene.begin();
            siege.wait(MOST_OF_A_BEGINNING).await;
            early.kill().await;
        }
        let left = scene.left_running().await;
        let began = Instant::now();
        (program, url) = scene.start().await;
        scene.until_taken_back(&left).await;
        siege.recovered(left.len(), began);
    }
    siege.load.goes_to(&[&url]);
    siege.end(&scene, &url).await;
    program.end().await;
    assert!(scene.left_running().await.is_empty());
}

/// What must be: the other one has taken its jobs over within lease + 1 s.
async fn on_postgres_one_of_two_dies_and_the_other_takes_over(scene: Scene, rounds: usize) {
    let mut siege = Siege::begin(&scene, LEASE + Duration::from_secs(1));
    let (mut victim, mut survivor) = (scene.start().await, scene.start().await);
    for _ in 0..self::rounds(rounds) {
        siege.load.goes_to(&[&victim.1, &survivor.1]);
        siege.wait(MOST_OF_A_LIFE).await;
        if siege.random.one_in(2) {
            std::mem::swap(&mut victim, &mut survivor);
        }
        let process_id = victim.0.process_id;
        victim.0.kill().await;
        let killed = Instant::now();
        siege.load.goes_to(&[&survivor.1]);
        let left = scene.running_in(process_id).await;
        scene.until_taken_back(&left).await;
        siege.recovered(left.len(), killed);
        victim = scene.start().await;
    }
    siege.load.goes_to(&[&victim.1, &survivor.1]);
    siege.end(&scene, &survivor.1).await;
    victim.0.end().await;
    survivor.0.end().await;
    assert!(scene.left_running().await.is_empty());
}

fn rounds(default: usize) -> usize {
    number("CRASH_ROUNDS").unwrap_or(default)
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(variable: &str) -> Option<T> {
    Some(env::var(variable).ok()?.parse().expect("a number"))
}

/// What goes on while processes die.
struct Siege {
    random: Random,
    load: Load,
    limit: Duration,
    recoveries: Vec<Duration>,
    interrupted: usize,
}

impl Siege {
    fn begin(scene: &Scene, limit: Duration) -> Self {
        let seed = number("CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 32);
        println!("CRASH_SEED={seed}");
        let mut random = Random::new(seed);
        let load = Load::start(&scene.http, &mut random);
        Self { random, load, limit, recoveries: Vec::new(), interrupted: 0 }
    }

    async fn wait(&mut self, most_millis: usize) {
        sleep(Duration::from_millis(self.random.below(most_millis) as u64)).await;
    }

    fn recovered(&mut self, interrupted: usize, since: Instant) {
        self.interrupted += interrupted;
        self.recoveries.push(since.elapsed());
    }

    async fn end(self, scene: &Scene, url: &str) {
        let asked = self.load.end().await;
        scene.until_all_is_done().await;
        let written = scene.written();
        for (key, id) in &asked.accepted {
            assert!(written.contains_key(key), "{key} was accepted and is not done");
            assert_eq!(scene.http.status(url, id).await["state"], "succeeded", "{key}");
        }
        let keys: HashSet<_> = asked.accepted.iter().map(|(key, _)| key).collect();
        assert!(written.keys().all(|key| keys.contains(key)), "nobody has asked for others");
        assert_eq!(keys.len(), asked.accepted.len());
        assert_eq!(scene.place.number("SELECT count(*) FROM river_job").await, keys.len() as i64, "each is one job");
        assert_eq!(scene.place.number("SELECT count(*) FROM river_job WHERE state <> 'completed'").await, 0);

        let again = written.values().filter(|&&times| times > 1).count();
        let attempts = scene.place.number("SELECT CAST(max(attempt) AS bigint) FROM river_job").await;
        let worst = self.recoveries.iter().max().copied().unwrap_or_default();
        println!(
            "{} kills: {} jobs accepted and done, {} written more than once, {} answers lost, {} refused; {} attempts interrupted, \
            at most {attempts} attempts of one job; recovered in at most {worst:?}, which must be {:?}",
            self.recoveries.len(),
            keys.len(),
            again,
            asked.answers_lost,
            asked.refused,
            self.interrupted,
            self.limit,
        );
        // The figure above is what must be right. A machine that does other things too may take longer.
        assert!(worst < 5 * self.limit, "{worst:?}");
    }
}
